/* ECC, retired pages, remapped rows, field values: what a health check asks. */
#include <string.h>
#include <sys/time.h>

#include "standin.h"

/* Counters lie under ecc.<volatile|aggregate>.<corrected|uncorrected>.<place>; a place is one of these. */
static const char *const places[] = {"l1", "l2", "dram", "registers", "texture", "shared", "cbu", "sram"};
#define PLACES (sizeof places / sizeof *places)

static const json *counters(const json *gpu, nvmlMemoryErrorType_t type, nvmlEccCounterType_t life) {
  return json_get(json_get(json_get(gpu, "ecc"), life == NVML_VOLATILE_ECC ? "volatile" : "aggregate"),
                  type == NVML_MEMORY_ERROR_TYPE_CORRECTED ? "corrected" : "uncorrected");
}

static unsigned long long total(const json *gpu, nvmlMemoryErrorType_t type, nvmlEccCounterType_t life) {
  const json *found = counters(gpu, type, life);
  unsigned long long sum = 0;
  for (size_t i = 0; i < PLACES; i++) sum += (unsigned long long)json_num(found, places[i], 0);
  return sum;
}

static bool has_ecc(const json *gpu) { return json_bool(gpu, "ecc_mode", true); }

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) {
  GPU(device);
  NEEDS(current && pending);
  *current = (nvmlEnableState_t)json_num(gpu, "ecc_mode", 1);
  *pending = (nvmlEnableState_t)json_num(gpu, "ecc_mode_pending", *current);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDefaultEccMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
  GPU(device);
  NEEDS(mode);
  *mode = NVML_FEATURE_ENABLED;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                nvmlEccCounterType_t life, unsigned long long *count) {
  GPU(device);
  NEEDS(count && (unsigned)type < NVML_MEMORY_ERROR_TYPE_COUNT && (unsigned)life < NVML_ECC_COUNTER_TYPE_COUNT);
  if (!has_ecc(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  *count = total(gpu, type, life);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                    nvmlEccCounterType_t life, nvmlMemoryLocation_t place,
                                                    unsigned long long *count) {
  GPU(device);
  NEEDS(count && (unsigned)type < NVML_MEMORY_ERROR_TYPE_COUNT && (unsigned)life < NVML_ECC_COUNTER_TYPE_COUNT &&
        (unsigned)place < PLACES);
  if (!has_ecc(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  *count = (unsigned long long)json_num(counters(gpu, type, life), places[place], 0);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDetailedEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                   nvmlEccCounterType_t life, nvmlEccErrorCounts_t *counts) {
  GPU(device);
  NEEDS(counts);
  if (!has_ecc(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  const json *found = counters(gpu, type, life);
  counts->l1Cache = (unsigned long long)json_num(found, "l1", 0);
  counts->l2Cache = (unsigned long long)json_num(found, "l2", 0);
  counts->deviceMemory = (unsigned long long)json_num(found, "dram", 0);
  counts->registerFile = (unsigned long long)json_num(found, "registers", 0);
  return NVML_SUCCESS;
}

/* From Ampere on rows are remapped; before, pages are retired. Each answers Not Supported for the other kind. */
static bool remaps(const json *gpu) { return json_num(gpu, "architecture", 0) >= NVML_DEVICE_ARCH_AMPERE; }

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                              unsigned int *pending, unsigned int *failure) {
  GPU(device);
  NEEDS(corrected && uncorrected && pending && failure);
  if (!remaps(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  const json *rows = json_get(gpu, "remapped_rows");
  *corrected = (unsigned)json_num(rows, "corrected", 0);
  *uncorrected = (unsigned)json_num(rows, "uncorrected", 0);
  *pending = json_bool(rows, "pending", false);
  *failure = json_bool(rows, "failed", false);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
  GPU(device);
  NEEDS(values);
  if (!remaps(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  unsigned used = (unsigned)json_num(json_get(gpu, "remapped_rows"), "uncorrected", 0);
  *values = (nvmlRowRemapperHistogramValues_t){.max = 640 - (used < 640 ? used : 640), .partial = used};
  return NVML_SUCCESS;
}

static nvmlReturn_t retired(const json *gpu, nvmlPageRetirementCause_t cause, unsigned int *count,
                            unsigned long long *addresses, unsigned long long *stamps) {
  NEEDS(count && (unsigned)cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
  if (remaps(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  unsigned room = *count;
  *count = (unsigned)json_num(
      json_get(gpu, "retired_pages"),
      cause == NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR ? "double_bit" : "single_bit", 0);
  if (*count > room) return NVML_ERROR_INSUFFICIENT_SIZE;
  for (unsigned i = 0; i < *count; i++) {
    if (addresses) addresses[i] = 0x1000ull * (i + 1);
    if (stamps) stamps[i] = 0;
  }
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                              unsigned long long *addresses) {
  GPU(device);
  return retired(gpu, cause, count, addresses, NULL);
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                                 unsigned int *count, unsigned long long *addresses,
                                                 unsigned long long *stamps) {
  GPU(device);
  return retired(gpu, cause, count, addresses, stamps);
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *pending) {
  GPU(device);
  NEEDS(pending);
  if (remaps(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  *pending = (nvmlEnableState_t)json_bool(json_get(gpu, "retired_pages"), "pending", false);
  return NVML_SUCCESS;
}

/* One field; `false` when this stand-in does not know it. */
static bool field(const json *gpu, unsigned id, unsigned long long *value) {
  const json *rows = json_get(gpu, "remapped_rows"), *pages = json_get(gpu, "retired_pages");
  switch (id) {
    case NVML_FI_DEV_ECC_CURRENT:
    case NVML_FI_DEV_ECC_PENDING: *value = has_ecc(gpu); return true;
    case NVML_FI_DEV_ECC_SBE_VOL_TOTAL:
      *value = total(gpu, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_VOLATILE_ECC);
      return has_ecc(gpu);
    case NVML_FI_DEV_ECC_DBE_VOL_TOTAL:
      *value = total(gpu, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC);
      return has_ecc(gpu);
    case NVML_FI_DEV_ECC_SBE_AGG_TOTAL:
      *value = total(gpu, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_AGGREGATE_ECC);
      return has_ecc(gpu);
    case NVML_FI_DEV_ECC_DBE_AGG_TOTAL:
      *value = total(gpu, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_AGGREGATE_ECC);
      return has_ecc(gpu);
    case NVML_FI_DEV_RETIRED_SBE: *value = (unsigned long long)json_num(pages, "single_bit", 0); return !remaps(gpu);
    case NVML_FI_DEV_RETIRED_DBE: *value = (unsigned long long)json_num(pages, "double_bit", 0); return !remaps(gpu);
    case NVML_FI_DEV_RETIRED_PENDING: *value = json_bool(pages, "pending", false); return !remaps(gpu);
    case NVML_FI_DEV_REMAPPED_COR: *value = (unsigned long long)json_num(rows, "corrected", 0); return remaps(gpu);
    case NVML_FI_DEV_REMAPPED_UNC: *value = (unsigned long long)json_num(rows, "uncorrected", 0); return remaps(gpu);
    case NVML_FI_DEV_REMAPPED_PENDING: *value = json_bool(rows, "pending", false); return remaps(gpu);
    case NVML_FI_DEV_REMAPPED_FAILURE: *value = json_bool(rows, "failed", false); return remaps(gpu);
    case NVML_FI_DEV_MEMORY_TEMP: *value = (unsigned long long)json_num(gpu, "memory_temperature", 45); return true;
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: *value = (unsigned long long)json_num(gpu, "energy_mj", 0); return true;
    case NVML_FI_DEV_NVLINK_LINK_COUNT: *value = json_len(json_get(gpu, "nvlinks")); return true;
    case NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON:
      *value = (unsigned long long)json_num(gpu, "nvlink_mbps", 0);
      return json_len(json_get(gpu, "nvlinks")) > 0;
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER: *value = (unsigned long long)json_num(gpu, "pcie_replays", 0); return true;
    case NVML_FI_DEV_POWER_AVERAGE:
    case NVML_FI_DEV_POWER_INSTANT: *value = (unsigned long long)json_num(gpu, "power_mw", 0); return true;
    case NVML_FI_DEV_POWER_MAX_LIMIT:
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
    case NVML_FI_DEV_POWER_CURRENT_LIMIT:
      *value = (unsigned long long)json_num(gpu, "power_limit_mw", 0);
      return true;
    default: return false;
  }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
  GPU(device);
  NEEDS(count > 0 && values);
  struct timeval now;
  gettimeofday(&now, NULL);
  for (int i = 0; i < count; i++) {
    unsigned long long number = 0;
    bool known = field(gpu, values[i].fieldId, &number);
    values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_usec;
    values[i].latencyUsec = 1;
    values[i].nvmlReturn = known ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    memset(&values[i].value, 0, sizeof values[i].value);
    values[i].value.ullVal = number;
  }
  return NVML_SUCCESS;
}
