/* Enumeration, identity, memory, load, power, clocks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "standin.h"

#define MAX_GPUS 64

static const char *uuid_of(const json *gpu, const json *mig) { return json_str(mig ? mig : gpu, "uuid", ""); }

static nvmlReturn_t hand_out(const json *gpu, nvmlDevice_t *device) {
  if (json_bool(gpu, "lost", false)) return NVML_ERROR_GPU_IS_LOST;
  nvmlReturn_t failure = (nvmlReturn_t)json_num(json_get(gpu, "errors"), "nvmlDeviceGetHandle", NVML_SUCCESS);
  if (failure) return failure;
  *device = si_handle(json_str(gpu, "uuid", ""), false);
  return *device ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
  ENTER;
  NEEDS(count);
  *count = si_visible(NULL, 0);
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
  ENTER;
  NEEDS(device);
  const json *gpus[MAX_GPUS];
  unsigned count = si_visible(gpus, MAX_GPUS);
  NEEDS(index < count && index < MAX_GPUS);
  return hand_out(gpus[index], device);
}
EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
  return nvmlDeviceGetHandleByIndex_v2(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  ENTER;
  NEEDS(uuid && device);
  const json *gpus[MAX_GPUS];
  unsigned count = si_visible(gpus, MAX_GPUS);
  for (unsigned i = 0; i < count && i < MAX_GPUS; i++) {
    if (!strcmp(json_str(gpus[i], "uuid", ""), uuid)) return hand_out(gpus[i], device);
    for (const json *mig = json_at(json_get(json_get(gpus[i], "mig"), "devices"), 0); mig; mig = mig->next) {
      if (strcmp(json_str(mig, "uuid", ""), uuid)) continue;
      if (json_bool(gpus[i], "lost", false)) return NVML_ERROR_GPU_IS_LOST;
      *device = si_handle(uuid, true);
      return *device ? NVML_SUCCESS : NVML_ERROR_MEMORY;
    }
  }
  return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
  ENTER;
  NEEDS(serial && device);
  const json *gpus[MAX_GPUS];
  unsigned count = si_visible(gpus, MAX_GPUS);
  for (unsigned i = 0; i < count && i < MAX_GPUS; i++)
    if (!strcmp(json_str(gpus[i], "serial", ""), serial)) return hand_out(gpus[i], device);
  return NVML_ERROR_NOT_FOUND;
}

static void bus_id(const json *gpu, char *text, size_t room, bool legacy) {
  const json *pci = json_get(gpu, "pci");
  snprintf(text, room, legacy ? "%04x:%02x:%02x.0" : "%08x:%02X:%02X.0", (unsigned)json_num(pci, "domain", 0),
           (unsigned)json_num(pci, "bus", 0), (unsigned)json_num(pci, "device", 0));
}

/* Both spellings are taken: 00000000:18:00.0 and 0000:18:00.0, in either case. */
EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *wanted, nvmlDevice_t *device) {
  ENTER;
  NEEDS(wanted && device);
  const json *gpus[MAX_GPUS];
  unsigned count = si_visible(gpus, MAX_GPUS);
  for (unsigned i = 0; i < count && i < MAX_GPUS; i++) {
    char full[40], legacy[40];
    bus_id(gpus[i], full, sizeof full, false);
    bus_id(gpus[i], legacy, sizeof legacy, true);
    if (!strcasecmp(wanted, full) || !strcasecmp(wanted, legacy)) return hand_out(gpus[i], device);
  }
  return NVML_ERROR_NOT_FOUND;
}
EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *wanted, nvmlDevice_t *device) {
  return nvmlDeviceGetHandleByPciBusId_v2(wanted, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
  ANY(device);
  NEEDS(index);
  if (mig) {
    *index = (unsigned)json_num(mig, "index", 0);
    return NVML_SUCCESS;
  }
  const json *gpus[MAX_GPUS];
  unsigned count = si_visible(gpus, MAX_GPUS);
  for (unsigned i = 0; i < count && i < MAX_GPUS; i++)
    if (gpus[i] == gpu) {
      *index = i;
      return NVML_SUCCESS;
    }
  return NVML_ERROR_GPU_IS_LOST;
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
  ANY(device);
  return si_text(uuid_of(gpu, mig), uuid, length);
}

/* A MIG device is called "<GPU> MIG <profile>". */
EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
  ANY(device);
  char text[192];
  const char *model = json_str(gpu, "name", "NVIDIA GPU");
  if (mig)
    snprintf(text, sizeof text, "%s MIG %s", model, json_str(mig, "profile", ""));
  else
    snprintf(text, sizeof text, "%s", model);
  return si_text(text, name, length);
}

#define TEXT(function, key, fallback)                                                      \
  EXPORT nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int length) {     \
    GPU(device);                                                                           \
    return si_text(json_str(gpu, key, fallback), text, length);                            \
  }
TEXT(nvmlDeviceGetSerial, "serial", "")
TEXT(nvmlDeviceGetVbiosVersion, "vbios", "")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part", "")
TEXT(nvmlDeviceGetInforomImageVersion, "inforom", "")

/* Whole numbers that the state holds under one key. */
#define NUMBER(function, type, key, fallback)                     \
  EXPORT nvmlReturn_t function(nvmlDevice_t device, type *value) { \
    GPU(device);                                                  \
    NEEDS(value);                                                 \
    *value = (type)json_num(gpu, key, fallback);                  \
    return NVML_SUCCESS;                                          \
  }
NUMBER(nvmlDeviceGetMinorNumber, unsigned int, "minor", 0)
NUMBER(nvmlDeviceGetModuleId, unsigned int, "module_id", 0)
NUMBER(nvmlDeviceGetNumaNodeId, unsigned int, "numa_node", 0)
NUMBER(nvmlDeviceGetBrand, nvmlBrandType_t, "brand", NVML_BRAND_NVIDIA)
NUMBER(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, "architecture", NVML_DEVICE_ARCH_UNKNOWN)
NUMBER(nvmlDeviceGetBoardId, unsigned int, "board_id", 0)
NUMBER(nvmlDeviceGetMultiGpuBoard, unsigned int, "multi_gpu_board", 0)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned int, "cores", 0)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned int, "memory_bus_width", 0)
NUMBER(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, "persistence", 1)
NUMBER(nvmlDeviceGetDisplayMode, nvmlEnableState_t, "display_mode", 0)
NUMBER(nvmlDeviceGetDisplayActive, nvmlEnableState_t, "display_active", 0)
NUMBER(nvmlDeviceGetComputeMode, nvmlComputeMode_t, "compute_mode", NVML_COMPUTEMODE_DEFAULT)
NUMBER(nvmlDeviceGetPerformanceState, nvmlPstates_t, "pstate", NVML_PSTATE_0)
NUMBER(nvmlDeviceGetPowerState, nvmlPstates_t, "pstate", NVML_PSTATE_0)
NUMBER(nvmlDeviceGetPowerManagementMode, nvmlEnableState_t, "power_management", 1)
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, "power_mw", 0)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned int, "power_limit_mw", 0)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, "power_limit_mw", 0)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, "power_limit_mw", 0)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy_mj", 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "throttle_reasons", 1)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "throttle_reasons", 1)
NUMBER(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, "throttle_reasons_supported", 0x1ff)
NUMBER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, "throttle_reasons_supported", 0x1ff)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, "pcie_generation", 4)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, "pcie_generation", 4)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, "pcie_generation", 4)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, "pcie_width", 16)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, "pcie_width", 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, unsigned int, "pcie_replays", 0)
NUMBER(nvmlDeviceGetIrqNum, unsigned int, "irq", 100)

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
  ANY(device);
  NEEDS(major && minor);
  const json *capability = json_get(gpu, "compute_capability");
  const json *first = json_at(capability, 0), *second = json_at(capability, 1);
  *major = first ? (int)first->number : 0;
  *minor = second ? (int)second->number : 0;
  return NVML_SUCCESS;
}

static void pci_info(const json *gpu, nvmlPciInfo_t *info) {
  const json *pci = json_get(gpu, "pci");
  memset(info, 0, sizeof *info);
  info->domain = (unsigned)json_num(pci, "domain", 0);
  info->bus = (unsigned)json_num(pci, "bus", 0);
  info->device = (unsigned)json_num(pci, "device", 0);
  info->pciDeviceId = (unsigned)json_num(pci, "device_id", 0) << 16 | 0x10deu;
  info->pciSubSystemId = (unsigned)json_num(pci, "subsystem_id", 0);
  bus_id(gpu, info->busId, sizeof info->busId, false);
  bus_id(gpu, info->busIdLegacy, sizeof info->busIdLegacy, true);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
  ANY(device);
  NEEDS(info);
  pci_info(gpu, info);
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *info) {
  return nvmlDeviceGetPciInfo_v3(device, info);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *info) {
  GPU(device);
  NEEDS(info);
  nvmlPciInfo_t plain;
  pci_info(gpu, &plain);
  unsigned class = (unsigned)json_num(json_get(gpu, "pci"), "class", 0x030200);
  info->domain = plain.domain;
  info->bus = plain.bus;
  info->device = plain.device;
  info->pciDeviceId = plain.pciDeviceId;
  info->pciSubSystemId = plain.pciSubSystemId;
  info->baseClass = class >> 16 & 0xff;
  info->subClass = class >> 8 & 0xff;
  memcpy(info->busId, plain.busId, sizeof info->busId);
  return NVML_SUCCESS;
}

/* CPUs of the GPU's NUMA node, as the state lists them: {"cpus": [0, 1, ...]}; without, all of the first 64. */
static nvmlReturn_t affinity(const json *gpu, unsigned size, unsigned long *set) {
  const unsigned bits = 8 * sizeof *set;
  memset(set, 0, size * sizeof *set);
  const json *cpus = json_get(gpu, "cpus");
  if (!cpus) set[0] = ~0ul;
  for (const json *cpu = json_at(cpus, 0); cpu; cpu = cpu->next)
    if ((unsigned)cpu->number / bits < size) set[(unsigned)cpu->number / bits] |= 1ul << ((unsigned)cpu->number % bits);
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set) {
  GPU(device);
  NEEDS(size && set);
  return affinity(gpu, size, set);
}
EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int size, unsigned long *set,
                                                        nvmlAffinityScope_t scope) {
  (void)scope;
  return nvmlDeviceGetCpuAffinity(device, size, set);
}
EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int size, unsigned long *set,
                                                nvmlAffinityScope_t scope) {
  (void)scope;
  GPU(device);
  NEEDS(size && set);
  memset(set, 0, size * sizeof *set);
  int node = (int)json_num(gpu, "numa_node", 0);
  if (node >= 0 && (unsigned)node < size * 8 * sizeof *set) set[0] |= 1ul << node;
  return NVML_SUCCESS;
}

struct memory {
  unsigned long long total, reserved, used;
};

/* Of a MIG device: its slice. Used is what processes hold, plus what the state adds, plus the driver's share. */
static struct memory memory_of(const json *gpu, const json *mig) {
  struct memory memory = {0};
  if (mig) {
    memory.total = (unsigned long long)json_num(mig, "memory_mib", 0) << 20;
    memory.reserved = 0;
  } else {
    memory.total = (unsigned long long)json_num(gpu, "memory_total", 0);
    memory.reserved = (unsigned long long)json_num(gpu, "memory_reserved", 0);
    memory.used = (unsigned long long)json_num(gpu, "memory_used", 0);
  }
  for (const json *one = json_at(json_get(gpu, "processes"), 0); one; one = one->next) {
    if (mig && (json_num(one, "gi", -1) != json_num(mig, "gi", -2) || json_num(one, "ci", 0) != json_num(mig, "ci", 0)))
      continue;
    memory.used += (unsigned long long)json_num(one, "memory", 0);
  }
  if (memory.used > memory.total - memory.reserved) memory.used = memory.total - memory.reserved;
  return memory;
}

/* Version 1 counts the reserved part as used, as NVML does. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info) {
  ANY(device);
  NEEDS(info);
  struct memory memory = memory_of(gpu, mig);
  info->total = memory.total;
  info->used = memory.used + memory.reserved;
  info->free = memory.total - info->used;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info) {
  ANY(device);
  NEEDS(info);
  if (info->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  struct memory memory = memory_of(gpu, mig);
  info->total = memory.total;
  info->reserved = memory.reserved;
  info->used = memory.used;
  info->free = memory.total - memory.used - memory.reserved;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *info) {
  ANY(device);
  NEEDS(info);
  info->bar1Total = (unsigned long long)json_num(gpu, "bar1_total", 0);
  info->bar1Used = (unsigned long long)json_num(gpu, "bar1_used", 0);
  info->bar1Free = info->bar1Total - info->bar1Used;
  return NVML_SUCCESS;
}

/* Not known of a GPU in MIG mode, nor of a MIG device. */
EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
  GPU(device);
  NEEDS(rates);
  if (json_bool(json_get(gpu, "mig"), "enabled", false)) return NVML_ERROR_NOT_SUPPORTED;
  rates->gpu = (unsigned)json_num(gpu, "utilization_gpu", 0);
  rates->memory = (unsigned)json_num(gpu, "utilization_memory", 0);
  return NVML_SUCCESS;
}

#define ENGINE_LOAD(function)                                                                   \
  EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned int *load, unsigned int *period) { \
    GPU(device);                                                                                \
    NEEDS(load && period);                                                                      \
    *load = 0;                                                                                  \
    *period = 167000;                                                                           \
    return NVML_SUCCESS;                                                                        \
  }
ENGINE_LOAD(nvmlDeviceGetEncoderUtilization)
ENGINE_LOAD(nvmlDeviceGetDecoderUtilization)

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *value) {
  GPU(device);
  NEEDS(value && sensor == NVML_TEMPERATURE_GPU);
  *value = (unsigned)json_num(gpu, "temperature", 40);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *value) {
  GPU(device);
  NEEDS(value);
  if (value->version != nvmlTemperature_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  NEEDS(value->sensorType == NVML_TEMPERATURE_GPU);
  value->temperature = (int)json_num(gpu, "temperature", 40);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t which,
                                                      unsigned int *value) {
  GPU(device);
  NEEDS(value);
  switch (which) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: *value = 92; return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: *value = 89; return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX: *value = 95; return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX: *value = 87; return NVML_SUCCESS;
    default: return NVML_ERROR_NOT_SUPPORTED;
  }
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least,
                                                                 unsigned int *most) {
  GPU(device);
  NEEDS(least && most);
  *most = (unsigned)json_num(gpu, "power_limit_mw", 0);
  *least = *most / 4;
  return NVML_SUCCESS;
}

static nvmlReturn_t clock_of(const json *gpu, const char *set, nvmlClockType_t type, unsigned int *clock) {
  static const char *const names[] = {"graphics", "sm", "memory", "video"};
  NEEDS(clock && (unsigned)type < 4);
  *clock = (unsigned)json_num(json_get(gpu, set), names[type], 0);
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
  GPU(device);
  return clock_of(gpu, "clocks", type, clock);
}
EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
  GPU(device);
  return clock_of(gpu, "clocks_max", type, clock);
}
EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
  GPU(device);
  return clock_of(gpu, "clocks_max", type, clock);
}
EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock) {
  GPU(device);
  return clock_of(gpu, id == NVML_CLOCK_ID_CURRENT ? "clocks" : "clocks_max", type, clock);
}

EXPORT nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
  GPU(device);
  return si_text(json_str(si_state, "driver_version", "0"), version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE);
}
