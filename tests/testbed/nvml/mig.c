/* MIG: mode, devices, GPU and compute instances, profiles. The state's "mig" object of a GPU:
 * {"capable", "enabled", "pending", "max", "profiles": [...], "devices": [{"uuid", "index", "gi", "ci", "profile",
 * "profile_id", "slices", "memory_mib", "multiprocessors", "start", "size"}]}. One compute instance fills a GPU
 * instance unless several devices share a gi. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

#define MAX_INSTANCES 1024

struct instance {
  char gpu[96];
  int gi, ci; /* ci is -1 for a GPU instance */
};
static struct instance *instances[MAX_INSTANCES];
static unsigned instance_count;

static struct instance *instance(const char *gpu, int gi, int ci) {
  for (unsigned i = 0; i < instance_count; i++)
    if (instances[i]->gi == gi && instances[i]->ci == ci && !strcmp(instances[i]->gpu, gpu)) return instances[i];
  if (instance_count == MAX_INSTANCES) return NULL;
  struct instance *made = calloc(1, sizeof *made);
  if (!made) return NULL;
  snprintf(made->gpu, sizeof made->gpu, "%s", gpu);
  made->gi = gi;
  made->ci = ci;
  return instances[instance_count++] = made;
}

static const json *devices(const json *gpu) { return json_at(json_get(json_get(gpu, "mig"), "devices"), 0); }
static const json *profiles(const json *gpu) { return json_at(json_get(json_get(gpu, "mig"), "profiles"), 0); }
static bool capable(const json *gpu) { return json_bool(json_get(gpu, "mig"), "capable", false); }
static bool enabled(const json *gpu) { return json_bool(json_get(gpu, "mig"), "enabled", false); }

static const json *profile_by(const json *gpu, const char *key, unsigned number) {
  for (const json *one = profiles(gpu); one; one = one->next)
    if ((unsigned)json_num(one, key, -1) == number) return one;
  return NULL;
}

/* A container has the capability nodes of its own MIG devices alone, and NVML lists no others there. */
static bool accessible(const json *gpu, const json *device) {
  if (!json_bool(si_state, "list_by_device_nodes", false)) return true;
  int first = 3 + (int)json_num(gpu, "minor", 0) * 135 + (int)json_num(device, "gi", 0) * 9;
  int minors[] = {first, first + 1 + (int)json_num(device, "ci", 0)};
  for (size_t i = 0; i < sizeof minors / sizeof *minors; i++) {
    char node[640];
    snprintf(node, sizeof node, "%s/nvidia-caps/nvidia-cap%d", json_str(si_state, "dev_root", "/dev"), minors[i]);
    if (access(node, F_OK)) return false;
  }
  return true;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
  GPU(device);
  NEEDS(current && pending);
  if (!capable(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  *current = enabled(gpu);
  *pending = json_bool(json_get(gpu, "mig"), "pending", *current);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is) {
  ANY(device);
  NEEDS(is);
  *is = mig != NULL;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
  GPU(device);
  NEEDS(count);
  *count = capable(gpu) ? (unsigned)json_num(json_get(gpu, "mig"), "max", 7) : 0;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *found) {
  GPU(device);
  NEEDS(found);
  if (!capable(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  if (index >= (unsigned)json_num(json_get(gpu, "mig"), "max", 7)) return NVML_ERROR_INVALID_ARGUMENT;
  for (const json *one = devices(gpu); one && enabled(gpu); one = one->next) {
    if ((unsigned)json_num(one, "index", 0) != index || !accessible(gpu, one)) continue;
    *found = si_handle(json_str(one, "uuid", ""), true);
    return *found ? NVML_SUCCESS : NVML_ERROR_MEMORY;
  }
  return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *parent) {
  ANY(device);
  NEEDS(parent && mig);
  *parent = si_handle(json_str(gpu, "uuid", ""), false);
  return *parent ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id) {
  ANY(device);
  NEEDS(id);
  if (!mig) return NVML_ERROR_NOT_SUPPORTED;
  *id = (unsigned)json_num(mig, "gi", 0);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id) {
  ANY(device);
  NEEDS(id);
  if (!mig) return NVML_ERROR_NOT_SUPPORTED;
  *id = (unsigned)json_num(mig, "ci", 0);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
  ANY(device);
  NEEDS(attributes);
  if (!mig) return NVML_ERROR_NOT_SUPPORTED;
  unsigned slices = (unsigned)json_num(mig, "slices", 1);
  *attributes = (nvmlDeviceAttributes_t){
      .multiprocessorCount = (unsigned)json_num(mig, "multiprocessors", 0),
      .sharedCopyEngineCount = slices,
      .sharedDecoderCount = (unsigned)json_num(mig, "decoders", 0),
      .sharedJpegCount = (unsigned)json_num(mig, "jpeg", 0),
      .sharedOfaCount = (unsigned)json_num(mig, "ofa", 0),
      .gpuInstanceSliceCount = slices,
      .computeInstanceSliceCount = (unsigned)json_num(mig, "compute_slices", slices),
      .memorySizeMB = (unsigned long long)json_num(mig, "memory_mib", 0),
  };
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
  return nvmlDeviceGetAttributes_v2(device, attributes);
}

/* `profile` is NVML_GPU_INSTANCE_PROFILE_*: the state keeps it as "kind". */
EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned int profile,
                                                        nvmlGpuInstanceProfileInfo_t *info) {
  GPU(device);
  NEEDS(info && profile < NVML_GPU_INSTANCE_PROFILE_COUNT);
  const json *one = profile_by(gpu, "kind", profile);
  if (!one) return NVML_ERROR_NOT_SUPPORTED;
  *info = (nvmlGpuInstanceProfileInfo_t){
      .id = (unsigned)json_num(one, "id", 0),
      .sliceCount = (unsigned)json_num(one, "slices", 1),
      .instanceCount = (unsigned)json_num(one, "instances", 1),
      .multiprocessorCount = (unsigned)json_num(one, "multiprocessors", 0),
      .copyEngineCount = (unsigned)json_num(one, "slices", 1),
      .memorySizeMB = (unsigned long long)json_num(one, "memory_mib", 0),
  };
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned int profile,
                                                         nvmlGpuInstanceProfileInfo_v2_t *info) {
  nvmlGpuInstanceProfileInfo_t plain;
  NEEDS(info);
  nvmlReturn_t rc = nvmlDeviceGetGpuInstanceProfileInfo(device, profile, &plain);
  if (rc) return rc;
  GPU(device);
  const json *one = profile_by(gpu, "kind", profile);
  char name[64];
  snprintf(name, sizeof name, "MIG %s", json_str(one, "name", ""));
  if (info->version == nvmlGpuInstanceProfileInfo_v3) {
    nvmlGpuInstanceProfileInfo_v3_t *third = (nvmlGpuInstanceProfileInfo_v3_t *)(void *)info;
    *third = (nvmlGpuInstanceProfileInfo_v3_t){.version = nvmlGpuInstanceProfileInfo_v3,
                                               .id = plain.id,
                                               .sliceCount = plain.sliceCount,
                                               .instanceCount = plain.instanceCount,
                                               .multiprocessorCount = plain.multiprocessorCount,
                                               .copyEngineCount = plain.copyEngineCount,
                                               .memorySizeMB = plain.memorySizeMB};
    return si_text(name, third->name, sizeof third->name);
  }
  if (info->version != nvmlGpuInstanceProfileInfo_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  *info = (nvmlGpuInstanceProfileInfo_v2_t){.version = nvmlGpuInstanceProfileInfo_v2,
                                            .id = plain.id,
                                            .sliceCount = plain.sliceCount,
                                            .instanceCount = plain.instanceCount,
                                            .multiprocessorCount = plain.multiprocessorCount,
                                            .copyEngineCount = plain.copyEngineCount,
                                            .memorySizeMB = plain.memorySizeMB};
  return si_text(name, info->name, sizeof info->name);
}

/* Instances of the profile with this id (the profile info's `id`, not its kind). */
EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned int profile, nvmlGpuInstance_t *found,
                                              unsigned int *count) {
  GPU(device);
  NEEDS(found && count);
  if (!enabled(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  *count = 0;
  int before = -1;
  for (const json *one = devices(gpu); one; one = one->next) {
    int gi = (int)json_num(one, "gi", 0);
    if ((unsigned)json_num(one, "profile_id", 0) != profile || gi == before) continue;
    before = gi;
    found[(*count)++] = (nvmlGpuInstance_t)(void *)instance(json_str(gpu, "uuid", ""), gi, -1);
  }
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *found) {
  GPU(device);
  NEEDS(found);
  if (!enabled(gpu)) return NVML_ERROR_NOT_SUPPORTED;
  for (const json *one = devices(gpu); one; one = one->next) {
    if ((unsigned)json_num(one, "gi", 0) != id) continue;
    *found = (nvmlGpuInstance_t)(void *)instance(json_str(gpu, "uuid", ""), (int)id, -1);
    return *found ? NVML_SUCCESS : NVML_ERROR_MEMORY;
  }
  return NVML_ERROR_NOT_FOUND;
}

/* The MIG device behind an instance handle, with its GPU. */
static nvmlReturn_t behind(const void *handle, const json **gpu, const json **device) {
  const struct instance *wanted = NULL;
  for (unsigned i = 0; i < instance_count; i++)
    if (instances[i] == handle) wanted = instances[i];
  if (!wanted) return NVML_ERROR_INVALID_ARGUMENT;
  for (const json *at = json_at(json_get(si_state, "gpus"), 0); at; at = at->next) {
    if (strcmp(json_str(at, "uuid", ""), wanted->gpu)) continue;
    *gpu = at;
    if (json_bool(at, "lost", false)) return NVML_ERROR_GPU_IS_LOST;
    for (const json *one = devices(at); one; one = one->next)
      if ((int)json_num(one, "gi", 0) == wanted->gi && (wanted->ci < 0 || (int)json_num(one, "ci", 0) == wanted->ci)) {
        *device = one;
        return NVML_SUCCESS;
      }
  }
  return NVML_ERROR_NOT_FOUND;
}

#define BEHIND(handle)                                               \
  ENTER;                                                             \
  const json *gpu = NULL, *mig = NULL;                               \
  do {                                                               \
    nvmlReturn_t rc_ = behind((const void *)(handle), &gpu, &mig);   \
    if (rc_ != NVML_SUCCESS) return rc_;                             \
  } while (0)

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info) {
  BEHIND(handle);
  NEEDS(info);
  *info = (nvmlGpuInstanceInfo_t){
      .device = si_handle(json_str(gpu, "uuid", ""), false),
      .id = (unsigned)json_num(mig, "gi", 0),
      .profileId = (unsigned)json_num(mig, "profile_id", 0),
      .placement = {(unsigned)json_num(mig, "start", 0), (unsigned)json_num(mig, "size", 1)},
  };
  return NVML_SUCCESS;
}

/* Compute instances fill their GPU instance here, so its slices tell the profile: 1, 2, 3, 4, 7, 8 or 6 slices. */
static const unsigned compute_slices[] = {1, 2, 3, 4, 7, 8, 6};

static unsigned compute_profile(const json *mig) {
  unsigned slices = (unsigned)json_num(mig, "compute_slices", json_num(mig, "slices", 1));
  for (unsigned i = 0; i < sizeof compute_slices / sizeof *compute_slices; i++)
    if (compute_slices[i] == slices) return i;
  return 0;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle, unsigned int profile,
                                                                 unsigned int engine,
                                                                 nvmlComputeInstanceProfileInfo_t *info) {
  BEHIND(handle);
  NEEDS(info && profile < NVML_COMPUTE_INSTANCE_PROFILE_COUNT && engine == 0);
  if (profile != compute_profile(mig)) return NVML_ERROR_NOT_SUPPORTED;
  *info = (nvmlComputeInstanceProfileInfo_t){.id = profile,
                                             .sliceCount = compute_slices[profile],
                                             .instanceCount = 1,
                                             .multiprocessorCount = (unsigned)json_num(mig, "multiprocessors", 0),
                                             .sharedCopyEngineCount = compute_slices[profile]};
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t handle, unsigned int profile,
                                                       nvmlComputeInstance_t *found, unsigned int *count) {
  BEHIND(handle);
  NEEDS(found && count);
  *count = 0;
  double gi = json_num(mig, "gi", 0);
  for (const json *one = devices(gpu); one; one = one->next)
    if (json_num(one, "gi", 0) == gi && compute_profile(one) == profile)
      found[(*count)++] =
          (nvmlComputeInstance_t)(void *)instance(json_str(gpu, "uuid", ""), (int)gi, (int)json_num(one, "ci", 0));
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t handle, unsigned int id,
                                                          nvmlComputeInstance_t *found) {
  BEHIND(handle);
  NEEDS(found);
  double gi = json_num(mig, "gi", 0);
  for (const json *one = devices(gpu); one; one = one->next) {
    if (json_num(one, "gi", 0) != gi || (unsigned)json_num(one, "ci", 0) != id) continue;
    *found = (nvmlComputeInstance_t)(void *)instance(json_str(gpu, "uuid", ""), (int)gi, (int)id);
    return *found ? NVML_SUCCESS : NVML_ERROR_MEMORY;
  }
  return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info) {
  BEHIND(handle);
  NEEDS(info);
  *info = (nvmlComputeInstanceInfo_t){
      .device = si_handle(json_str(gpu, "uuid", ""), false),
      .gpuInstance = (nvmlGpuInstance_t)(void *)instance(json_str(gpu, "uuid", ""), (int)json_num(mig, "gi", 0), -1),
      .id = (unsigned)json_num(mig, "ci", 0),
      .profileId = compute_profile(mig),
      .placement = {0, (unsigned)json_num(mig, "compute_slices", json_num(mig, "slices", 1))},
  };
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info) {
  return nvmlComputeInstanceGetInfo_v2(handle, info);
}
