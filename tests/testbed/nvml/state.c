/* The state file, handles, init and shutdown, system queries. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "standin.h"

#define DEFAULT_STATE "/run/nvml-standin/state.json"
#define MAX_GPUS 64
#define MAX_HANDLES 4096

const json *si_state;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static json *tree;
static struct stat seen;
static char path[512], directory[512];
static unsigned references;
static struct handle *handles[MAX_HANDLES];
static unsigned handle_count;
/* The driver's list of GPUs as this process found it: NVML learns of new ones at init alone. */
static char attached[MAX_GPUS][96];
static unsigned attached_count;

int si_lock(void) {
  pthread_mutex_lock(&mutex);
  return 0;
}

void si_unlock(const int *token) {
  (void)token;
  pthread_mutex_unlock(&mutex);
}

const char *si_directory(void) { return directory; }

/* Read the state again when the file is another one than last time. A file that is not there or not JSON leaves
 * the last good state in place: writers rename into place, so neither lasts. */
static bool refresh(void) {
  struct stat now;
  if (stat(path, &now)) return tree != NULL;
  if (tree && now.st_ino == seen.st_ino && now.st_size == seen.st_size &&
      now.st_mtim.tv_sec == seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec &&
      now.st_ctim.tv_nsec == seen.st_ctim.tv_nsec)
    return true;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return tree != NULL;
  char *text = NULL;
  json *fresh = NULL;
  if (!fstat(fd, &now) && (text = malloc((size_t)now.st_size + 1))) {
    size_t have = 0;
    ssize_t got;
    while (have < (size_t)now.st_size && (got = read(fd, text + have, (size_t)now.st_size - have)) > 0)
      have += (size_t)got;
    text[have] = 0;
    fresh = json_parse(text);
  }
  free(text);
  close(fd);
  if (fresh) {
    json_free(tree);
    tree = fresh;
    si_state = tree;
    seen = now;
  }
  return tree != NULL;
}

nvmlReturn_t si_ready(void) {
  if (!references) return NVML_ERROR_UNINITIALIZED;
  return refresh() ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

nvmlReturn_t si_text(const char *from, char *to, unsigned length) {
  if (!to) return NVML_ERROR_INVALID_ARGUMENT;
  if (strlen(from) + 1 > length) return NVML_ERROR_INSUFFICIENT_SIZE;
  strcpy(to, from);
  return NVML_SUCCESS;
}

nvmlDevice_t si_handle(const char *uuid, bool mig) {
  for (unsigned i = 0; i < handle_count; i++)
    if (!strcmp(handles[i]->uuid, uuid)) return (nvmlDevice_t)(void *)handles[i];
  if (handle_count == MAX_HANDLES) return NULL;
  struct handle *made = calloc(1, sizeof *made);
  if (!made) return NULL;
  snprintf(made->uuid, sizeof made->uuid, "%s", uuid);
  made->mig = mig;
  handles[handle_count++] = made;
  return (nvmlDevice_t)(void *)made;
}

/* Position in the state's list, -1 when the GPU is not in it; the topology matrices count like this. */
int si_position(const json *gpu) {
  int position = 0;
  for (const json *at = json_at(json_get(si_state, "gpus"), 0); at; at = at->next, position++)
    if (at == gpu) return position;
  return -1;
}

static bool has_node(const json *gpu) {
  if (!json_bool(si_state, "list_by_device_nodes", false)) return true;
  char node[640];
  snprintf(node, sizeof node, "%s/nvidia%d", json_str(si_state, "dev_root", "/dev"),
           (int)json_num(gpu, "minor", 0));
  return access(node, F_OK) == 0;
}

static bool is_attached(const char *uuid) {
  if (!strcmp(json_str(si_state, "hotplug", "reinit"), "live")) return true;
  for (unsigned i = 0; i < attached_count; i++)
    if (!strcmp(attached[i], uuid)) return true;
  return false;
}

unsigned si_visible(const json **gpus, unsigned room) {
  unsigned count = 0;
  for (const json *gpu = json_at(json_get(si_state, "gpus"), 0); gpu; gpu = gpu->next) {
    if (!is_attached(json_str(gpu, "uuid", "")) || !has_node(gpu)) continue;
    if (count < room) gpus[count] = gpu;
    count++;
  }
  return count;
}

nvmlReturn_t si_resolve(nvmlDevice_t device, const char *function, const json **gpu, const json **mig) {
  struct handle *handle = (struct handle *)(void *)device;
  bool known = false;
  for (unsigned i = 0; i < handle_count && !known; i++) known = handles[i] == handle;
  if (!handle || !known) return NVML_ERROR_INVALID_ARGUMENT;
  for (const json *at = json_at(json_get(si_state, "gpus"), 0); at; at = at->next) {
    const json *found = NULL;
    if (handle->mig) {
      for (const json *one = json_at(json_get(json_get(at, "mig"), "devices"), 0); one; one = one->next)
        if (!strcmp(json_str(one, "uuid", ""), handle->uuid)) found = one;
      if (!found) continue;
    } else if (strcmp(json_str(at, "uuid", ""), handle->uuid)) {
      continue;
    }
    *gpu = at;
    *mig = found;
    if (json_bool(at, "lost", false)) return NVML_ERROR_GPU_IS_LOST;
    return (nvmlReturn_t)json_num(json_get(at, "errors"), function, NVML_SUCCESS);
  }
  /* A GPU that was taken away is lost to those who hold its handle; a MIG device that was destroyed is unknown. */
  return handle->mig ? NVML_ERROR_NOT_FOUND : NVML_ERROR_GPU_IS_LOST;
}

/* The environment is asked at every first init: a test may point one process at several states. */
static nvmlReturn_t init(void) {
  LOCKED;
  if (!references) {
    const char *wanted = getenv("NVML_STANDIN_STATE");
    snprintf(path, sizeof path, "%s", wanted && *wanted ? wanted : DEFAULT_STATE);
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash && slash != directory) *slash = 0;
    json_free(tree);
    tree = NULL;
    si_state = NULL;
    if (!refresh()) return NVML_ERROR_DRIVER_NOT_LOADED;
  } else {
    refresh();
  }
  int failure = (int)json_num(si_state, "init_error", 0);
  if (failure) return (nvmlReturn_t)failure;
  if (!references) {
    attached_count = 0;
    for (const json *gpu = json_at(json_get(si_state, "gpus"), 0); gpu && attached_count < MAX_GPUS; gpu = gpu->next)
      snprintf(attached[attached_count++], sizeof attached[0], "%s", json_str(gpu, "uuid", ""));
  }
  references++;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return init(); }
EXPORT nvmlReturn_t nvmlInit(void) { return init(); }

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
  (void)flags;
  return init();
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
  LOCKED;
  if (!references) return NVML_ERROR_UNINITIALIZED;
  references--;
  return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
  static const struct {
    nvmlReturn_t code;
    const char *text;
  } table[] = {
      {NVML_SUCCESS, "Success"},
      {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
      {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
      {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
      {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
      {NVML_ERROR_ALREADY_INITIALIZED, "Already Initialized"},
      {NVML_ERROR_NOT_FOUND, "Not Found"},
      {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
      {NVML_ERROR_INSUFFICIENT_POWER, "Insufficient External Power"},
      {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
      {NVML_ERROR_TIMEOUT, "Timeout"},
      {NVML_ERROR_IRQ_ISSUE, "Interrupt Request Issue"},
      {NVML_ERROR_LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"},
      {NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"},
      {NVML_ERROR_CORRUPTED_INFOROM, "Corrupted infoROM"},
      {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
      {NVML_ERROR_RESET_REQUIRED, "GPU requires restart"},
      {NVML_ERROR_OPERATING_SYSTEM, "The operating system has blocked the request."},
      {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
      {NVML_ERROR_IN_USE, "In use by another client"},
      {NVML_ERROR_MEMORY, "Insufficient Memory"},
      {NVML_ERROR_NO_DATA, "No data"},
      {NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
      {NVML_ERROR_FREQ_NOT_SUPPORTED, "Frequency Not Supported"},
      {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument Version Mismatch"},
      {NVML_ERROR_DEPRECATED, "Deprecated"},
      {NVML_ERROR_NOT_READY, "Not Ready"},
      {NVML_ERROR_GPU_NOT_FOUND, "GPU Not Found"},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (table[i].code == result) return table[i].text;
  return "Unknown Error";
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
  ENTER;
  return si_text(json_str(si_state, "driver_version", "0"), version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
  ENTER;
  return si_text(json_str(si_state, "nvml_version", "0"), version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
  ENTER;
  NEEDS(version);
  *version = (int)json_num(si_state, "cuda_version", 0);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

static const json *named_process(unsigned int pid) {
  for (const json *gpu = json_at(json_get(si_state, "gpus"), 0); gpu; gpu = gpu->next)
    for (const json *one = json_at(json_get(gpu, "processes"), 0); one; one = one->next)
      if ((unsigned)json_num(one, "pid", 0) == pid && json_get(one, "name")) return one;
  return NULL;
}

/* The name the state gives the process, else what the kernel knows of it. */
EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
  ENTER;
  NEEDS(name && length);
  char file[64], text[256] = {0};
  const json *process = named_process(pid);
  if (process) {
    snprintf(text, sizeof text, "%s", json_str(process, "name", ""));
  } else {
    snprintf(file, sizeof file, "/proc/%u/cmdline", pid);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_NOT_FOUND;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return NVML_ERROR_NOT_FOUND;
  }
  snprintf(name, length, "%s", text);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlUnitGetCount(unsigned int *count) {
  ENTER;
  NEEDS(count);
  *count = 0;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGetExcludedDeviceCount(unsigned int *count) {
  ENTER;
  NEEDS(count);
  *count = 0;
  return NVML_SUCCESS;
}
