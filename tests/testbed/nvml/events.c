/* Event sets. The state keeps the last few hundred events with a rising number; a set remembers the last number it
 * has seen and sleeps on inotify until the state's directory changes, so many processes can listen, nothing is
 * polled, and an event is there a moment after it was steered. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "standin.h"

#define MAX_REGISTERED 64
#define DEFAULT_TYPES                                                                                        \
  (nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError | nvmlEventTypePState |                   \
   nvmlEventTypeXidCriticalError | nvmlEventTypeClock | nvmlEventMigConfigChange)
/* Only where inotify is not to be had, in milliseconds. */
#define POLL_WITHOUT_INOTIFY 20

struct set {
  int notify;
  double last;
  unsigned count;
  struct {
    nvmlDevice_t device;
    unsigned long long types;
  } registered[MAX_REGISTERED];
};

static double newest(void) {
  double last = 0;
  for (const json *event = json_at(json_get(si_state, "events"), 0); event; event = event->next)
    last = json_num(event, "seq", last);
  return last;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
  ENTER;
  NEEDS(out);
  struct set *set = calloc(1, sizeof *set);
  if (!set) return NVML_ERROR_MEMORY;
  set->notify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (set->notify >= 0 && inotify_add_watch(set->notify, si_directory(), IN_MOVED_TO | IN_CLOSE_WRITE) < 0) {
    close(set->notify);
    set->notify = -1;
  }
  set->last = newest();
  *out = (nvmlEventSet_t)(void *)set;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t handle) {
  LOCKED;
  struct set *set = (struct set *)(void *)handle;
  NEEDS(set);
  if (set->notify >= 0) close(set->notify);
  free(set);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
  GPU(device);
  NEEDS(types);
  *types = (unsigned long long)json_num(gpu, "event_types", DEFAULT_TYPES);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t handle) {
  GPU(device);
  struct set *set = (struct set *)(void *)handle;
  NEEDS(set);
  unsigned long long supported = (unsigned long long)json_num(gpu, "event_types", DEFAULT_TYPES);
  if (types & ~supported) return NVML_ERROR_NOT_SUPPORTED;
  for (unsigned i = 0; i < set->count; i++)
    if (set->registered[i].device == device) {
      set->registered[i].types |= types;
      return NVML_SUCCESS;
    }
  if (set->count == MAX_REGISTERED) return NVML_ERROR_MEMORY;
  set->registered[set->count].device = device;
  set->registered[set->count++].types = types;
  return NVML_SUCCESS;
}

/* The next event that someone registered for. A GPU that is lost ends the wait at once with GPU_IS_LOST, once what
 * was queued is delivered; as with the real thing, a caller who asks again at once is told again at once. */
static nvmlReturn_t take(struct set *set, nvmlEventData_t *data) {
  for (const json *event = json_at(json_get(si_state, "events"), 0); event; event = event->next) {
    double seq = json_num(event, "seq", 0);
    if (seq <= set->last) continue;
    set->last = seq;
    nvmlDevice_t device = si_handle(json_str(event, "gpu", ""), false);
    unsigned long long type = (unsigned long long)json_num(event, "type", 0);
    for (unsigned i = 0; i < set->count; i++) {
      if (set->registered[i].device != device || !(set->registered[i].types & type)) continue;
      *data = (nvmlEventData_t){.device = device,
                                .eventType = type,
                                .eventData = (unsigned long long)json_num(event, "data", 0),
                                .gpuInstanceId = (unsigned)json_num(event, "gi", NO_INSTANCE),
                                .computeInstanceId = (unsigned)json_num(event, "ci", NO_INSTANCE)};
      return NVML_SUCCESS;
    }
  }
  for (unsigned i = 0; i < set->count; i++) {
    const json *gpu, *mig;
    if (si_resolve(set->registered[i].device, "", &gpu, &mig) == NVML_ERROR_GPU_IS_LOST) return NVML_ERROR_GPU_IS_LOST;
  }
  return NVML_ERROR_TIMEOUT;
}

static long long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static nvmlReturn_t check(struct set *set, nvmlEventData_t *data) {
  ENTER;
  nvmlReturn_t failure = (nvmlReturn_t)json_num(si_state, "event_wait_error", NVML_SUCCESS);
  return failure ? failure : take(set, data);
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t handle, nvmlEventData_t *data, unsigned int timeout) {
  struct set *set = (struct set *)(void *)handle;
  NEEDS(set && data);
  long long end = now_ms() + timeout;
  for (;;) {
    nvmlReturn_t rc = check(set, data);
    long long left = end - now_ms();
    if (rc != NVML_ERROR_TIMEOUT || left <= 0) return rc;
    int slice = left > 60000 ? 60000 : (int)left;
    if (set->notify < 0) {
      poll(NULL, 0, slice < POLL_WITHOUT_INOTIFY ? slice : POLL_WITHOUT_INOTIFY);
      continue;
    }
    struct pollfd waiting = {.fd = set->notify, .events = POLLIN};
    if (poll(&waiting, 1, slice) > 0) {
      char drained[4096];
      while (read(set->notify, drained, sizeof drained) > 0) continue;
    }
  }
}
EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t handle, nvmlEventData_t *data, unsigned int timeout) {
  return nvmlEventSetWait_v2(handle, data, timeout);
}
