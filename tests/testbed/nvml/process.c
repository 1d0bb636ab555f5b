/* Processes that hold a GPU or a MIG device, as the state lists them. */
#include <string.h>

#include "standin.h"

/* Processes of the whole GPU, or of one MIG device. `count` comes in as room and goes out as how many there are. */
static nvmlReturn_t processes(const json *gpu, const json *mig, unsigned int *count, nvmlProcessInfo_t *infos,
                              nvmlProcessInfo_v1_t *old, const char *kind) {
  NEEDS(count);
  unsigned room = *count, found = 0;
  for (const json *one = json_at(json_get(gpu, "processes"), 0); one; one = one->next) {
    if (strcmp(json_str(one, "kind", "compute"), kind)) continue;
    unsigned gi = (unsigned)json_num(one, "gi", NO_INSTANCE), ci = (unsigned)json_num(one, "ci", NO_INSTANCE);
    if (mig && (gi != (unsigned)json_num(mig, "gi", NO_INSTANCE) || ci != (unsigned)json_num(mig, "ci", NO_INSTANCE)))
      continue;
    if (found < room && infos)
      infos[found] = (nvmlProcessInfo_t){.pid = (unsigned)json_num(one, "pid", 0),
                                         .usedGpuMemory = (unsigned long long)json_num(one, "memory", 0),
                                         .gpuInstanceId = gi,
                                         .computeInstanceId = ci};
    if (found < room && old)
      old[found] = (nvmlProcessInfo_v1_t){.pid = (unsigned)json_num(one, "pid", 0),
                                          .usedGpuMemory = (unsigned long long)json_num(one, "memory", 0)};
    found++;
  }
  *count = found;
  return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define PROCESSES(base, kind)                                                                               \
  EXPORT nvmlReturn_t base##_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {       \
    ANY(device);                                                                                            \
    return processes(gpu, mig, count, infos, NULL, kind);                                                   \
  }                                                                                                         \
  EXPORT nvmlReturn_t base##_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *infos) {    \
    return base##_v3(device, count, infos);                                                                 \
  }                                                                                                         \
  EXPORT nvmlReturn_t base(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos) {         \
    ANY(device);                                                                                            \
    return processes(gpu, mig, count, NULL, infos, kind);                                                   \
  }
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v2_t *);
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v1_t *);
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v2_t *);
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v1_t *);
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v2_t *);
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v1_t *);
PROCESSES(nvmlDeviceGetComputeRunningProcesses, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, "mps")
