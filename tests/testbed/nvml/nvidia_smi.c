/* A stand-in for nvidia-smi: -L, --query-gpu, --query-compute-apps, -q -x, topo -m, and the table, from whatever
 * libnvidia-ml.so.1 the loader finds. One program in one file, so longer than others: it is printing, mostly.
 * Messages and exit codes for a driver that does not answer are the real one's. */
#define _GNU_SOURCE
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <dlfcn.h>
#include <nvml.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define MAX_GPUS 64
#define MIB 1048576ull

/* Exit codes of nvidia-smi(1). */
enum { INVALID = 2, NOT_FOUND = 6, NO_DRIVER = 9, NO_LIBRARY = 12, LOST = 15 };

static void *library;
static int worst; /* exit code when some GPU could not be read */

/* Calls a function of the library by name; a missing one counts as not supported. */
#define CALL(name, ...)                                                                          \
  ({                                                                                             \
    __typeof__(&name) function_ = (__typeof__(&name))(uintptr_t)dlsym(library, #name);           \
    function_ ? function_(__VA_ARGS__) : NVML_ERROR_FUNCTION_NOT_FOUND;                          \
  })

static const char *reason(nvmlReturn_t code) {
  const char *(*text)(nvmlReturn_t) = (const char *(*)(nvmlReturn_t))(uintptr_t)dlsym(library, "nvmlErrorString");
  return text ? text(code) : "Unknown Error";
}

struct gpu {
  unsigned index;
  nvmlDevice_t handle;
  nvmlPciInfo_t pci;
};
static struct gpu gpus[MAX_GPUS];
static unsigned gpu_count, listed;

static void open_library(void) {
  library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  if (!library) {
    puts("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display "
         "Driver is properly installed and present in your system.\nPlease also try adding directory that contains "
         "libnvidia-ml.so to your system PATH.\n");
    exit(NO_LIBRARY);
  }
  nvmlReturn_t rc = CALL(nvmlInit_v2);
  if (rc == NVML_ERROR_DRIVER_NOT_LOADED) {
    puts("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
         "NVIDIA driver is installed and running.\n");
    exit(NO_DRIVER);
  }
  if (rc) {
    printf("Failed to initialize NVML: %s\n", reason(rc));
    exit((int)rc);
  }
}

/* All GPUs that answer, or those that `only` (index, UUID, address; comma-separated) names. */
static void find_gpus(const char *only) {
  CALL(nvmlDeviceGetCount_v2, &listed);
  for (unsigned i = 0; i < listed && i < MAX_GPUS; i++) {
    struct gpu gpu = {.index = i};
    nvmlReturn_t rc = CALL(nvmlDeviceGetHandleByIndex_v2, i, &gpu.handle);
    if (rc) {
      printf("Unable to determine the device handle for GPU%u: %s%s\n", i, reason(rc),
             rc == NVML_ERROR_GPU_IS_LOST ? ".  Reboot the system to recover this GPU" : "");
      worst = LOST;
      continue;
    }
    CALL(nvmlDeviceGetPciInfo_v3, gpu.handle, &gpu.pci);
    if (only) {
      char uuid[96] = "", wanted[1024], number[16], *rest = wanted;
      bool hit = false;
      CALL(nvmlDeviceGetUUID, gpu.handle, uuid, sizeof uuid);
      snprintf(number, sizeof number, "%u", i);
      snprintf(wanted, sizeof wanted, "%s", only);
      for (char *word; (word = strsep(&rest, ","));)
        hit = hit || !strcmp(word, number) || !strcmp(word, uuid) || !strcasecmp(word, gpu.pci.busId) ||
              !strcasecmp(word, gpu.pci.busIdLegacy);
      if (!hit) continue;
    }
    gpus[gpu_count++] = gpu;
  }
  if (!gpu_count && !worst) {
    puts("No devices were found");
    exit(NOT_FOUND);
  }
}

/* -- one value of one GPU, as text ------------------------------------------------------------------------------- */

typedef bool (*getter)(const struct gpu *gpu, char *out, size_t room);

#define STRING(name, function)                                               \
  static bool name(const struct gpu *gpu, char *out, size_t room) {          \
    return CALL(function, gpu->handle, out, (unsigned)room) == NVML_SUCCESS; \
  }
STRING(get_name, nvmlDeviceGetName)
STRING(get_uuid, nvmlDeviceGetUUID)
STRING(get_serial, nvmlDeviceGetSerial)
STRING(get_vbios, nvmlDeviceGetVbiosVersion)
STRING(get_part, nvmlDeviceGetBoardPartNumber)

#define COUNT(name, function)                                         \
  static bool name(const struct gpu *gpu, char *out, size_t room) {   \
    unsigned value = 0;                                               \
    if (CALL(function, gpu->handle, &value)) return false;            \
    snprintf(out, room, "%u", value);                                 \
    return true;                                                      \
  }
COUNT(get_minor, nvmlDeviceGetMinorNumber)
COUNT(get_link_gen, nvmlDeviceGetCurrPcieLinkGeneration)
COUNT(get_link_gen_max, nvmlDeviceGetMaxPcieLinkGeneration)
COUNT(get_link_width, nvmlDeviceGetCurrPcieLinkWidth)
COUNT(get_link_width_max, nvmlDeviceGetMaxPcieLinkWidth)

static bool get_index(const struct gpu *gpu, char *out, size_t room) {
  snprintf(out, room, "%u", gpu->index);
  return true;
}
static bool get_total(const struct gpu *gpu, char *out, size_t room) {
  (void)gpu;
  snprintf(out, room, "%u", listed);
  return true;
}
static bool get_bus_id(const struct gpu *gpu, char *out, size_t room) {
  snprintf(out, room, "%s", gpu->pci.busId);
  return true;
}
#define PCI(name, format, field)                                    \
  static bool name(const struct gpu *gpu, char *out, size_t room) { \
    snprintf(out, room, format, gpu->pci.field);                    \
    return true;                                                    \
  }
PCI(get_pci_domain, "0x%04X", domain)
PCI(get_pci_bus, "0x%02X", bus)
PCI(get_pci_device, "0x%02X", device)
PCI(get_pci_device_id, "0x%08X", pciDeviceId)
PCI(get_pci_subsystem, "0x%08X", pciSubSystemId)

static bool get_driver(const struct gpu *gpu, char *out, size_t room) {
  (void)gpu;
  return CALL(nvmlSystemGetDriverVersion, out, (unsigned)room) == NVML_SUCCESS;
}

static bool memory(nvmlDevice_t handle, nvmlMemory_v2_t *info) {
  memset(info, 0, sizeof *info);
  info->version = nvmlMemory_v2;
  return CALL(nvmlDeviceGetMemoryInfo_v2, handle, info) == NVML_SUCCESS;
}
#define MEMORY(name, field)                                         \
  static bool name(const struct gpu *gpu, char *out, size_t room) { \
    nvmlMemory_v2_t info;                                           \
    if (!memory(gpu->handle, &info)) return false;                  \
    snprintf(out, room, "%llu", info.field / MIB);                  \
    return true;                                                    \
  }
MEMORY(get_memory_total, total)
MEMORY(get_memory_used, used)
MEMORY(get_memory_free, free)
MEMORY(get_memory_reserved, reserved)

#define LOAD(name, field)                                                          \
  static bool name(const struct gpu *gpu, char *out, size_t room) {                \
    nvmlUtilization_t rates;                                                       \
    if (CALL(nvmlDeviceGetUtilizationRates, gpu->handle, &rates)) return false;    \
    snprintf(out, room, "%u", rates.field);                                        \
    return true;                                                                   \
  }
LOAD(get_load, gpu)
LOAD(get_memory_load, memory)

static bool get_temperature(const struct gpu *gpu, char *out, size_t room) {
  unsigned value;
  if (CALL(nvmlDeviceGetTemperature, gpu->handle, NVML_TEMPERATURE_GPU, &value)) return false;
  snprintf(out, room, "%u", value);
  return true;
}
static bool get_memory_temperature(const struct gpu *gpu, char *out, size_t room) {
  nvmlFieldValue_t field = {.fieldId = NVML_FI_DEV_MEMORY_TEMP};
  if (CALL(nvmlDeviceGetFieldValues, gpu->handle, 1, &field) || field.nvmlReturn) return false;
  snprintf(out, room, "%llu", field.value.ullVal);
  return true;
}
#define POWER(name, function)                                         \
  static bool name(const struct gpu *gpu, char *out, size_t room) {   \
    unsigned value;                                                   \
    if (CALL(function, gpu->handle, &value)) return false;            \
    snprintf(out, room, "%.2f", value / 1000.0);                      \
    return true;                                                      \
  }
POWER(get_power, nvmlDeviceGetPowerUsage)
POWER(get_power_limit, nvmlDeviceGetPowerManagementLimit)

#define CLOCK(name, function, type)                                   \
  static bool name(const struct gpu *gpu, char *out, size_t room) {   \
    unsigned value;                                                   \
    if (CALL(function, gpu->handle, type, &value)) return false;      \
    snprintf(out, room, "%u", value);                                 \
    return true;                                                      \
  }
CLOCK(get_clock_graphics, nvmlDeviceGetClockInfo, NVML_CLOCK_GRAPHICS)
CLOCK(get_clock_sm, nvmlDeviceGetClockInfo, NVML_CLOCK_SM)
CLOCK(get_clock_memory, nvmlDeviceGetClockInfo, NVML_CLOCK_MEM)
CLOCK(get_clock_max_sm, nvmlDeviceGetMaxClockInfo, NVML_CLOCK_SM)
CLOCK(get_clock_max_memory, nvmlDeviceGetMaxClockInfo, NVML_CLOCK_MEM)

static bool on_off(bool on, char *out, size_t room) {
  snprintf(out, room, "%s", on ? "Enabled" : "Disabled");
  return true;
}
static bool get_persistence(const struct gpu *gpu, char *out, size_t room) {
  nvmlEnableState_t state;
  return !CALL(nvmlDeviceGetPersistenceMode, gpu->handle, &state) && on_off(state, out, room);
}
static bool get_display(const struct gpu *gpu, char *out, size_t room) {
  nvmlEnableState_t state;
  return !CALL(nvmlDeviceGetDisplayActive, gpu->handle, &state) && on_off(state, out, room);
}
static bool get_ecc(const struct gpu *gpu, char *out, size_t room) {
  nvmlEnableState_t now, later;
  return !CALL(nvmlDeviceGetEccMode, gpu->handle, &now, &later) && on_off(now, out, room);
}
static bool get_ecc_pending(const struct gpu *gpu, char *out, size_t room) {
  nvmlEnableState_t now, later;
  return !CALL(nvmlDeviceGetEccMode, gpu->handle, &now, &later) && on_off(later, out, room);
}
static bool get_mig(const struct gpu *gpu, char *out, size_t room) {
  unsigned now, later;
  return !CALL(nvmlDeviceGetMigMode, gpu->handle, &now, &later) && on_off(now, out, room);
}
static bool get_mig_pending(const struct gpu *gpu, char *out, size_t room) {
  unsigned now, later;
  return !CALL(nvmlDeviceGetMigMode, gpu->handle, &now, &later) && on_off(later, out, room);
}
#define ECC(name, type, life)                                                                    \
  static bool name(const struct gpu *gpu, char *out, size_t room) {                              \
    unsigned long long value;                                                                    \
    if (CALL(nvmlDeviceGetTotalEccErrors, gpu->handle, type, life, &value)) return false;        \
    snprintf(out, room, "%llu", value);                                                          \
    return true;                                                                                 \
  }
ECC(get_ecc_corrected, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_VOLATILE_ECC)
ECC(get_ecc_uncorrected, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC)
ECC(get_ecc_corrected_ever, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_AGGREGATE_ECC)
ECC(get_ecc_uncorrected_ever, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_AGGREGATE_ECC)

static bool get_pstate(const struct gpu *gpu, char *out, size_t room) {
  nvmlPstates_t state;
  if (CALL(nvmlDeviceGetPerformanceState, gpu->handle, &state)) return false;
  snprintf(out, room, "P%d", (int)state);
  return true;
}
static bool get_compute_mode(const struct gpu *gpu, char *out, size_t room) {
  static const char *const names[] = {"Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process"};
  nvmlComputeMode_t mode;
  if (CALL(nvmlDeviceGetComputeMode, gpu->handle, &mode) || (unsigned)mode > 3) return false;
  snprintf(out, room, "%s", names[mode]);
  return true;
}
static bool get_capability(const struct gpu *gpu, char *out, size_t room) {
  int major, minor;
  if (CALL(nvmlDeviceGetCudaComputeCapability, gpu->handle, &major, &minor)) return false;
  snprintf(out, room, "%d.%d", major, minor);
  return true;
}
static bool get_retired(const struct gpu *gpu, char *out, size_t room) {
  nvmlEnableState_t pending;
  if (CALL(nvmlDeviceGetRetiredPagesPendingStatus, gpu->handle, &pending)) return false;
  snprintf(out, room, "%s", pending ? "Yes" : "No");
  return true;
}
static bool get_architecture(const struct gpu *gpu, char *out, size_t room) {
  static const char *const names[] = {"",       "",       "Kepler", "Maxwell", "Pascal",   "Volta",
                                      "Turing", "Ampere", "Ada Lovelace", "Hopper", "Blackwell"};
  nvmlDeviceArchitecture_t architecture;
  if (CALL(nvmlDeviceGetArchitecture, gpu->handle, &architecture) || architecture > 10) return false;
  snprintf(out, room, "%s", names[architecture]);
  return true;
}

static const struct field {
  const char *name, *unit;
  getter get;
} fields[] = {
    {"index", "", get_index},
    {"count", "", get_total},
    {"name", "", get_name},
    {"gpu_name", "", get_name},
    {"uuid", "", get_uuid},
    {"gpu_uuid", "", get_uuid},
    {"serial", "", get_serial},
    {"gpu_serial", "", get_serial},
    {"gpu_part_number", "", get_part},
    {"vbios_version", "", get_vbios},
    {"driver_version", "", get_driver},
    {"pci.bus_id", "", get_bus_id},
    {"gpu_bus_id", "", get_bus_id},
    {"pci.domain", "", get_pci_domain},
    {"pci.bus", "", get_pci_bus},
    {"pci.device", "", get_pci_device},
    {"pci.device_id", "", get_pci_device_id},
    {"pci.sub_device_id", "", get_pci_subsystem},
    {"pcie.link.gen.current", "", get_link_gen},
    {"pcie.link.gen.max", "", get_link_gen_max},
    {"pcie.link.width.current", "", get_link_width},
    {"pcie.link.width.max", "", get_link_width_max},
    {"memory.total", "MiB", get_memory_total},
    {"memory.used", "MiB", get_memory_used},
    {"memory.free", "MiB", get_memory_free},
    {"memory.reserved", "MiB", get_memory_reserved},
    {"utilization.gpu", "%", get_load},
    {"utilization.memory", "%", get_memory_load},
    {"temperature.gpu", "", get_temperature},
    {"temperature.memory", "", get_memory_temperature},
    {"power.draw", "W", get_power},
    {"power.limit", "W", get_power_limit},
    {"clocks.current.graphics", "MHz", get_clock_graphics},
    {"clocks.gr", "MHz", get_clock_graphics},
    {"clocks.current.sm", "MHz", get_clock_sm},
    {"clocks.sm", "MHz", get_clock_sm},
    {"clocks.current.memory", "MHz", get_clock_memory},
    {"clocks.mem", "MHz", get_clock_memory},
    {"clocks.max.sm", "MHz", get_clock_max_sm},
    {"clocks.max.memory", "MHz", get_clock_max_memory},
    {"pstate", "", get_pstate},
    {"persistence_mode", "", get_persistence},
    {"display_active", "", get_display},
    {"compute_mode", "", get_compute_mode},
    {"compute_cap", "", get_capability},
    {"ecc.mode.current", "", get_ecc},
    {"ecc.mode.pending", "", get_ecc_pending},
    {"ecc.errors.corrected.volatile.total", "", get_ecc_corrected},
    {"ecc.errors.uncorrected.volatile.total", "", get_ecc_uncorrected},
    {"ecc.errors.corrected.aggregate.total", "", get_ecc_corrected_ever},
    {"ecc.errors.uncorrected.aggregate.total", "", get_ecc_uncorrected_ever},
    {"retired_pages.pending", "", get_retired},
    {"mig.mode.current", "", get_mig},
    {"mig.mode.pending", "", get_mig_pending},
};

static const struct field *field_named(const char *name) {
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (!strcmp(fields[i].name, name)) return &fields[i];
  printf("Field \"%s\" is not a valid field to query.\n\n", name);
  exit(INVALID);
}

static const char *text(getter get, const struct gpu *gpu) {
  static char out[8][256];
  static unsigned turn;
  char *buffer = out[turn++ % 8];
  if (!get(gpu, buffer, sizeof out[0])) strcpy(buffer, "[N/A]");
  return buffer;
}

/* -- what it prints ------------------------------------------------------------------------------------------------ */

static void query(char *list, bool header, bool units) {
  const struct field *wanted[64];
  unsigned count = 0;
  for (char *word; (word = strsep(&list, ",")) && count < 64;) {
    while (*word == ' ') word++;
    if (*word) wanted[count++] = field_named(word);
  }
  for (unsigned i = 0; header && i < count; i++)
    printf(*wanted[i]->unit ? "%s%s [%s]" : "%s%s", i ? ", " : "", wanted[i]->name, wanted[i]->unit);
  if (header) puts("");
  for (unsigned g = 0; g < gpu_count; g++) {
    for (unsigned i = 0; i < count; i++) {
      const char *value = text(wanted[i]->get, &gpus[g]);
      bool with = units && *wanted[i]->unit && *value != '[';
      printf("%s%s%s%s", i ? ", " : "", value, with ? " " : "", with ? wanted[i]->unit : "");
    }
    puts("");
  }
}

static unsigned processes(nvmlDevice_t handle, nvmlProcessInfo_t *found, unsigned room) {
  unsigned count = room;
  return CALL(nvmlDeviceGetComputeRunningProcesses_v3, handle, &count, found) ? 0 : count;
}

static const char *process_name(unsigned pid) {
  static char name[256];
  if (CALL(nvmlSystemGetProcessName, pid, name, sizeof name)) strcpy(name, "[Not Found]");
  return name;
}

static void query_apps(char *list, bool header, bool units) {
  char *words[16];
  unsigned count = 0;
  for (char *word; (word = strsep(&list, ",")) && count < 16;) {
    while (*word == ' ') word++;
    words[count++] = word;
  }
  for (unsigned i = 0; header && i < count; i++)
    printf("%s%s%s", i ? ", " : "", words[i], strstr(words[i], "used_") ? " [MiB]" : "");
  if (header) puts("");
  for (unsigned g = 0; g < gpu_count; g++) {
    nvmlProcessInfo_t found[128];
    unsigned running = processes(gpus[g].handle, found, 128);
    for (unsigned p = 0; p < running; p++) {
      for (unsigned i = 0; i < count; i++) {
        printf("%s", i ? ", " : "");
        if (!strcmp(words[i], "pid"))
          printf("%u", found[p].pid);
        else if (!strcmp(words[i], "process_name") || !strcmp(words[i], "name"))
          printf("%s", process_name(found[p].pid));
        else if (!strcmp(words[i], "used_memory") || !strcmp(words[i], "used_gpu_memory"))
          printf("%llu%s", found[p].usedGpuMemory / MIB, units ? " MiB" : "");
        else if (!strcmp(words[i], "gpu_uuid"))
          printf("%s", text(get_uuid, &gpus[g]));
        else if (!strcmp(words[i], "gpu_bus_id"))
          printf("%s", gpus[g].pci.busId);
        else if (!strcmp(words[i], "gpu_name"))
          printf("%s", text(get_name, &gpus[g]));
        else
          field_named(words[i]);
      }
      puts("");
    }
  }
}

/* The MIG device number `index` of a GPU, or false. */
static bool mig_device(const struct gpu *gpu, unsigned index, nvmlDevice_t *device) {
  return CALL(nvmlDeviceGetMigDeviceHandleByIndex, gpu->handle, index, device) == NVML_SUCCESS;
}

static unsigned mig_room(const struct gpu *gpu) {
  unsigned count = 0;
  CALL(nvmlDeviceGetMaxMigDeviceCount, gpu->handle, &count);
  return count;
}

static void list(void) {
  for (unsigned g = 0; g < gpu_count; g++) {
    printf("GPU %u: %s (UUID: %s)\n", gpus[g].index, text(get_name, &gpus[g]), text(get_uuid, &gpus[g]));
    for (unsigned i = 0; i < mig_room(&gpus[g]); i++) {
      nvmlDevice_t device;
      char name[128] = "", uuid[96] = "";
      if (!mig_device(&gpus[g], i, &device)) continue;
      CALL(nvmlDeviceGetName, device, name, sizeof name);
      CALL(nvmlDeviceGetUUID, device, uuid, sizeof uuid);
      char *profile = strstr(name, "MIG ");
      printf("  MIG %-12s Device %2u: (UUID: %s)\n", profile ? profile + 4 : "?", i, uuid);
    }
  }
}

static void element(unsigned depth, const char *name, const char *value, const char *unit) {
  for (unsigned i = 0; i < depth; i++) putchar('\t');
  bool known = *value != '[';
  printf("<%s>", name);
  for (const char *at = known ? value : "N/A"; *at; at++) {
    if (*at == '&')
      fputs("&amp;", stdout);
    else if (*at == '<')
      fputs("&lt;", stdout);
    else if (*at == '>')
      fputs("&gt;", stdout);
    else
      putchar(*at);
  }
  printf("%s%s</%s>\n", known && *unit ? " " : "", known ? unit : "", name);
}

static void open_element(unsigned depth, const char *name) {
  for (unsigned i = 0; i < depth; i++) putchar('\t');
  printf("<%s>\n", name);
}

static void close_element(unsigned depth, const char *name) {
  for (unsigned i = 0; i < depth; i++) putchar('\t');
  printf("</%s>\n", name);
}

static const char *number(unsigned long long value) {
  static char out[8][32];
  static unsigned turn;
  char *buffer = out[turn++ % 8];
  snprintf(buffer, sizeof out[0], "%llu", value);
  return buffer;
}

static void xml_memory(unsigned depth, nvmlDevice_t handle) {
  nvmlMemory_v2_t info;
  bool known = memory(handle, &info);
  open_element(depth, "fb_memory_usage");
  element(depth + 1, "total", known ? number(info.total / MIB) : "[", "MiB");
  element(depth + 1, "reserved", known ? number(info.reserved / MIB) : "[", "MiB");
  element(depth + 1, "used", known ? number(info.used / MIB) : "[", "MiB");
  element(depth + 1, "free", known ? number(info.free / MIB) : "[", "MiB");
  close_element(depth, "fb_memory_usage");
}

static void xml_mig(const struct gpu *gpu) {
  bool any = false;
  for (unsigned i = 0; i < mig_room(gpu); i++) {
    nvmlDevice_t device;
    if (!mig_device(gpu, i, &device)) continue;
    if (!any) open_element(2, "mig_devices");
    any = true;
    unsigned gi = 0, ci = 0;
    nvmlDeviceAttributes_t attributes = {0};
    CALL(nvmlDeviceGetGpuInstanceId, device, &gi);
    CALL(nvmlDeviceGetComputeInstanceId, device, &ci);
    CALL(nvmlDeviceGetAttributes_v2, device, &attributes);
    open_element(3, "mig_device");
    element(4, "index", number(i), "");
    element(4, "gpu_instance_id", number(gi), "");
    element(4, "compute_instance_id", number(ci), "");
    open_element(4, "device_attributes");
    open_element(5, "shared");
    element(6, "multiprocessor_count", number(attributes.multiprocessorCount), "");
    element(6, "copy_engine_count", number(attributes.sharedCopyEngineCount), "");
    close_element(5, "shared");
    close_element(4, "device_attributes");
    xml_memory(4, device);
    close_element(3, "mig_device");
  }
  if (any)
    close_element(2, "mig_devices");
  else
    element(2, "mig_devices", "None", "");
}

static void xml_ecc(const struct gpu *gpu, const char *name, nvmlEccCounterType_t life) {
  static const struct {
    const char *name;
    nvmlMemoryErrorType_t type;
    nvmlMemoryLocation_t place;
  } rows[] = {{"sram_correctable", NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_LOCATION_SRAM},
              {"sram_uncorrectable", NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_MEMORY_LOCATION_SRAM},
              {"dram_correctable", NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_LOCATION_DRAM},
              {"dram_uncorrectable", NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_MEMORY_LOCATION_DRAM}};
  open_element(3, name);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    unsigned long long value = 0;
    bool known = !CALL(nvmlDeviceGetMemoryErrorCounter, gpu->handle, rows[i].type, life, rows[i].place, &value);
    element(4, rows[i].name, known ? number(value) : "[", "");
  }
  close_element(3, name);
}

static void xml_gpu(const struct gpu *gpu) {
  char plain[64];
  printf("\t<gpu id=\"%s\">\n", gpu->pci.busId);
  element(2, "product_name", text(get_name, gpu), "");
  element(2, "product_architecture", text(get_architecture, gpu), "");
  element(2, "display_active", text(get_display, gpu), "");
  element(2, "persistence_mode", text(get_persistence, gpu), "");
  open_element(2, "mig_mode");
  element(3, "current_mig", text(get_mig, gpu), "");
  element(3, "pending_mig", text(get_mig_pending, gpu), "");
  close_element(2, "mig_mode");
  xml_mig(gpu);
  element(2, "serial", text(get_serial, gpu), "");
  element(2, "uuid", text(get_uuid, gpu), "");
  element(2, "minor_number", text(get_minor, gpu), "");
  element(2, "vbios_version", text(get_vbios, gpu), "");
  element(2, "gpu_part_number", text(get_part, gpu), "");
  open_element(2, "pci");
  element(3, "pci_bus", text(get_pci_bus, gpu) + 2, "");
  element(3, "pci_device", text(get_pci_device, gpu) + 2, "");
  element(3, "pci_domain", text(get_pci_domain, gpu) + 2, "");
  element(3, "pci_device_id", text(get_pci_device_id, gpu) + 2, "");
  element(3, "pci_bus_id", gpu->pci.busId, "");
  element(3, "pci_sub_system_id", text(get_pci_subsystem, gpu) + 2, "");
  open_element(3, "pci_gpu_link_info");
  open_element(4, "pcie_gen");
  element(5, "max_link_gen", text(get_link_gen_max, gpu), "");
  element(5, "current_link_gen", text(get_link_gen, gpu), "");
  close_element(4, "pcie_gen");
  open_element(4, "link_widths");
  snprintf(plain, sizeof plain, "%sx", text(get_link_width_max, gpu));
  element(5, "max_link_width", plain, "");
  snprintf(plain, sizeof plain, "%sx", text(get_link_width, gpu));
  element(5, "current_link_width", plain, "");
  close_element(4, "link_widths");
  close_element(3, "pci_gpu_link_info");
  close_element(2, "pci");
  element(2, "performance_state", text(get_pstate, gpu), "");
  xml_memory(2, gpu->handle);
  element(2, "compute_mode", text(get_compute_mode, gpu), "");
  open_element(2, "utilization");
  element(3, "gpu_util", text(get_load, gpu), "%");
  element(3, "memory_util", text(get_memory_load, gpu), "%");
  close_element(2, "utilization");
  open_element(2, "ecc_mode");
  element(3, "current_ecc", text(get_ecc, gpu), "");
  element(3, "pending_ecc", text(get_ecc_pending, gpu), "");
  close_element(2, "ecc_mode");
  open_element(2, "ecc_errors");
  xml_ecc(gpu, "volatile", NVML_VOLATILE_ECC);
  xml_ecc(gpu, "aggregate", NVML_AGGREGATE_ECC);
  close_element(2, "ecc_errors");
  open_element(2, "retired_pages");
  element(3, "pending_retirement", text(get_retired, gpu), "");
  close_element(2, "retired_pages");
  unsigned corrected, uncorrected, pending, failed;
  if (CALL(nvmlDeviceGetRemappedRows, gpu->handle, &corrected, &uncorrected, &pending, &failed)) {
    element(2, "remapped_rows", "N/A", "");
  } else {
    open_element(2, "remapped_rows");
    element(3, "remapped_row_corr", number(corrected), "");
    element(3, "remapped_row_unc", number(uncorrected), "");
    element(3, "remapped_row_pending", pending ? "Yes" : "No", "");
    element(3, "remapped_row_failure", failed ? "Yes" : "No", "");
    close_element(2, "remapped_rows");
  }
  open_element(2, "temperature");
  element(3, "gpu_temp", text(get_temperature, gpu), "C");
  element(3, "memory_temp", text(get_memory_temperature, gpu), "C");
  close_element(2, "temperature");
  open_element(2, "gpu_power_readings");
  element(3, "power_state", text(get_pstate, gpu), "");
  element(3, "power_draw", text(get_power, gpu), "W");
  element(3, "current_power_limit", text(get_power_limit, gpu), "W");
  close_element(2, "gpu_power_readings");
  open_element(2, "clocks");
  element(3, "graphics_clock", text(get_clock_graphics, gpu), "MHz");
  element(3, "sm_clock", text(get_clock_sm, gpu), "MHz");
  element(3, "mem_clock", text(get_clock_memory, gpu), "MHz");
  close_element(2, "clocks");
  nvmlProcessInfo_t found[128];
  unsigned running = processes(gpu->handle, found, 128);
  open_element(2, "processes");
  for (unsigned p = 0; p < running; p++) {
    open_element(3, "process_info");
    bool sliced = found[p].gpuInstanceId != 0xFFFFFFFFu;
    element(4, "gpu_instance_id", sliced ? number(found[p].gpuInstanceId) : "N/A", "");
    element(4, "compute_instance_id", sliced ? number(found[p].computeInstanceId) : "N/A", "");
    element(4, "pid", number(found[p].pid), "");
    element(4, "type", "C", "");
    element(4, "process_name", process_name(found[p].pid), "");
    element(4, "used_memory", number(found[p].usedGpuMemory / MIB), "MiB");
    close_element(3, "process_info");
  }
  close_element(2, "processes");
  close_element(1, "gpu");
}

static void cuda_version(char *out, size_t room) {
  int version = 0;
  CALL(nvmlSystemGetCudaDriverVersion_v2, &version);
  snprintf(out, room, "%d.%d", version / 1000, version % 1000 / 10);
}

static void now(char *out, size_t room) {
  time_t at = time(NULL);
  strftime(out, room, "%a %b %e %H:%M:%S %Y", localtime(&at));
}

static void xml(void) {
  char cuda[16], stamp[64];
  struct gpu none = {0};
  cuda_version(cuda, sizeof cuda);
  now(stamp, sizeof stamp);
  puts("<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v12.dtd\">\n<nvidia_smi_log>");
  element(1, "timestamp", stamp, "");
  element(1, "driver_version", text(get_driver, &none), "");
  element(1, "cuda_version", cuda, "");
  element(1, "attached_gpus", number(listed), "");
  for (unsigned g = 0; g < gpu_count; g++) xml_gpu(&gpus[g]);
  puts("</nvidia_smi_log>");
}

static void table(void) {
  char cuda[16], stamp[64], memory_text[64], power[64], persistence[8];
  struct gpu none = {0};
  cuda_version(cuda, sizeof cuda);
  now(stamp, sizeof stamp);
  const char *rule = "+-----------------------------------------+------------------------+----------------------+";
  const char *wide = "+-----------------------------------------------------------------------------------------+";
  puts(stamp);
  puts(wide);
  printf("| NVIDIA-SMI %-22s Driver Version: %-14s CUDA Version: %-8s |\n", text(get_driver, &none),
         text(get_driver, &none), cuda);
  puts(rule);
  puts("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |");
  puts("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |");
  puts("|                                         |                        |               MIG M. |");
  puts("|=========================================+========================+======================|");
  for (unsigned g = 0; g < gpu_count; g++) {
    const struct gpu *gpu = &gpus[g];
    snprintf(memory_text, sizeof memory_text, "%sMiB / %6sMiB", text(get_memory_used, gpu), text(get_memory_total, gpu));
    snprintf(power, sizeof power, "%.0fW / %4.0fW", atof(text(get_power, gpu)), atof(text(get_power_limit, gpu)));
    snprintf(persistence, sizeof persistence, "%s", strcmp(text(get_persistence, gpu), "Enabled") ? "Off" : "On");
    printf("| %3u  %-27.27s %6s |   %16s %s | %20s |\n", gpu->index, text(get_name, gpu), persistence, gpu->pci.busId,
           "Off", text(get_ecc_uncorrected, gpu));
    printf("| N/A  %3sC    %-4s %20s | %22s | %7s%%  %11s |\n", text(get_temperature, gpu), text(get_pstate, gpu), power,
           memory_text, text(get_load, gpu), text(get_compute_mode, gpu));
    printf("| %39s | %22s | %20s |\n", "", "", text(get_mig, gpu));
    puts(rule);
  }
  puts("");
  puts(wide);
  puts("| Processes:                                                                              |");
  puts("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |");
  puts("|=========================================================================================|");
  bool any = false;
  for (unsigned g = 0; g < gpu_count; g++) {
    nvmlProcessInfo_t found[128];
    unsigned running = processes(gpus[g].handle, found, 128);
    for (unsigned p = 0; p < running; p++) {
      any = true;
      printf("| %4u  %3s  %3s  %15u      C   %-34.34s %8lluMiB |\n", gpus[g].index, "N/A", "N/A", found[p].pid,
             process_name(found[p].pid), found[p].usedGpuMemory / MIB);
    }
  }
  if (!any) puts("|  No running processes found                                                             |");
  puts(wide);
}

/* NV# where links join two GPUs (through switches: all links of the GPU), else the PCIe level. */
static void wiring(const struct gpu *one, const struct gpu *other, char *out, size_t room) {
  unsigned links = 0;
  for (unsigned link = 0; link < NVML_NVLINK_MAX_LINKS; link++) {
    nvmlEnableState_t active;
    nvmlIntNvLinkDeviceType_t type;
    nvmlPciInfo_t far;
    if (CALL(nvmlDeviceGetNvLinkState, one->handle, link, &active)) break;
    if (!active || CALL(nvmlDeviceGetNvLinkRemoteDeviceType, one->handle, link, &type)) continue;
    if (type == NVML_NVLINK_DEVICE_TYPE_SWITCH)
      links++;
    else if (!CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2, one->handle, link, &far) && !strcmp(far.busId, other->pci.busId))
      links++;
  }
  if (links) {
    snprintf(out, room, "NV%u", links);
    return;
  }
  nvmlGpuTopologyLevel_t level;
  if (CALL(nvmlDeviceGetTopologyCommonAncestor, one->handle, other->handle, &level)) level = NVML_TOPOLOGY_SYSTEM;
  snprintf(out, room, "%s",
           level == NVML_TOPOLOGY_SYSTEM       ? "SYS"
           : level == NVML_TOPOLOGY_NODE       ? "NODE"
           : level == NVML_TOPOLOGY_HOSTBRIDGE ? "PHB"
           : level == NVML_TOPOLOGY_MULTIPLE   ? "PXB"
                                               : "PIX");
}

static void topology(void) {
  for (unsigned g = 0; g < gpu_count; g++) printf("\tGPU%u", gpus[g].index);
  puts("");
  for (unsigned a = 0; a < gpu_count; a++) {
    printf("GPU%u", gpus[a].index);
    for (unsigned b = 0; b < gpu_count; b++) {
      char cell[16] = " X ";
      if (a != b) wiring(&gpus[a], &gpus[b], cell, sizeof cell);
      printf("\t%s", cell);
    }
    puts("");
  }
}

int main(int count, char **words) {
  char *gpu_fields = NULL, *app_fields = NULL, *only = NULL;
  bool listing = false, as_xml = false, full = false, header = true, units = true, wires = false;
  for (int i = 1; i < count; i++) {
    char *word = words[i], *value = strchr(word, '=');
    if (value && !strncmp(word, "--", 2)) *value++ = 0;
    if (!strcmp(word, "-L") || !strcmp(word, "--list-gpus")) {
      listing = true;
    } else if (!strcmp(word, "-q") || !strcmp(word, "--query")) {
      full = true;
    } else if (!strcmp(word, "-x") || !strcmp(word, "--xml-format")) {
      as_xml = true;
    } else if (!strcmp(word, "--query-gpu") && value) {
      gpu_fields = value;
    } else if ((!strcmp(word, "--query-compute-apps") || !strcmp(word, "--query-apps")) && value) {
      app_fields = value;
    } else if (!strcmp(word, "--format") && value) {
      header = !strstr(value, "noheader");
      units = !strstr(value, "nounits");
    } else if ((!strcmp(word, "-i") || !strcmp(word, "--id")) && (value || i + 1 < count)) {
      only = value ? value : words[++i];
    } else if (!strcmp(word, "topo")) {
      wires = true;
    } else if (!strcmp(word, "-m") && wires) {
      continue;
    } else if (!strcmp(word, "--version")) {
      open_library();
      char version[96] = "";
      CALL(nvmlSystemGetDriverVersion, version, sizeof version);
      printf("NVIDIA-SMI version  : %s\nDRIVER version      : %s\n", version, version);
      return 0;
    } else {
      printf("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n"
             "(stand-in: knows -L, -q -x, --query-gpu=, --query-compute-apps=, --format=, -i, topo -m, --version)\n");
      return INVALID;
    }
  }
  open_library();
  find_gpus(only);
  if (listing)
    list();
  else if (gpu_fields)
    query(gpu_fields, header, units);
  else if (app_fields)
    query_apps(app_fields, header, units);
  else if (as_xml || full)
    xml();
  else if (wires)
    topology();
  else
    table();
  CALL(nvmlShutdown);
  return worst;
}
