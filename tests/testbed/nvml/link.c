/* How GPUs are wired: PCIe ancestors, NVLinks, peer to peer, fabric. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

#define MAX_GPUS 64

/* The level of the nearest common ancestor, from the state's matrix of NVML_TOPOLOGY_* levels; a matrix that has
 * no such entry (a sabotage, a GPU added later) answers `system`. */
static int level(const json *one, const json *other) {
  if (one == other) return NVML_TOPOLOGY_INTERNAL;
  const json *row = json_at(json_get(si_state, "topology"), (size_t)si_position(one));
  const json *cell = json_at(row, (size_t)si_position(other));
  return cell ? (int)cell->number : NVML_TOPOLOGY_SYSTEM;
}

static nvmlReturn_t pair(nvmlDevice_t first, nvmlDevice_t second, const char *function, const json **one,
                         const json **other) {
  const json *mig = NULL;
  nvmlReturn_t rc = si_resolve(first, function, one, &mig);
  if (!rc && mig) rc = NVML_ERROR_NOT_SUPPORTED;
  if (!rc) rc = si_resolve(second, function, other, &mig);
  if (!rc && mig) rc = NVML_ERROR_NOT_SUPPORTED;
  return rc;
}

#define PAIR(first, second)                                                \
  ENTER;                                                                   \
  const json *one = NULL, *other = NULL;                                   \
  do {                                                                     \
    nvmlReturn_t rc_ = pair(first, second, __func__, &one, &other);        \
    if (rc_ != NVML_SUCCESS) return rc_;                                   \
  } while (0)

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t first, nvmlDevice_t second,
                                                        nvmlGpuTopologyLevel_t *found) {
  PAIR(first, second);
  NEEDS(found);
  *found = (nvmlGpuTopologyLevel_t)level(one, other);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t wanted,
                                                     unsigned int *count, nvmlDevice_t *found) {
  GPU(device);
  NEEDS(count);
  const json *gpus[MAX_GPUS];
  unsigned total = si_visible(gpus, MAX_GPUS), room = *count;
  *count = 0;
  for (unsigned i = 0; i < total && i < MAX_GPUS; i++) {
    if (gpus[i] == gpu || level(gpu, gpus[i]) != (int)wanted) continue;
    if (*count < room && found) found[*count] = si_handle(json_str(gpus[i], "uuid", ""), false);
    (*count)++;
  }
  return *count > room && found ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t first, nvmlDevice_t second, int *same) {
  PAIR(first, second);
  NEEDS(same);
  *same = json_num(one, "board_id", -1) == json_num(other, "board_id", -2);
  return NVML_SUCCESS;
}

/* Links: [{"type": "gpu", "peer": "<uuid>"} | {"type": "switch", "bus": 7}, "active": true], one entry a link. */
static const json *link_of(const json *gpu, unsigned link) { return json_at(json_get(gpu, "nvlinks"), link); }

static bool connected(const json *one, const json *other) {
  bool to_switch = false;
  for (const json *link = json_at(json_get(one, "nvlinks"), 0); link; link = link->next) {
    if (!json_bool(link, "active", true)) continue;
    if (!strcmp(json_str(link, "peer", ""), json_str(other, "uuid", "?"))) return true;
    to_switch = to_switch || !strcmp(json_str(link, "type", "gpu"), "switch");
  }
  const json *far = json_at(json_get(other, "nvlinks"), 0);
  return to_switch && far && !strcmp(json_str(far, "type", "gpu"), "switch");
}

EXPORT nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t first, nvmlDevice_t second, nvmlGpuP2PCapsIndex_t which,
                                           nvmlGpuP2PStatus_t *status) {
  PAIR(first, second);
  NEEDS(status && (unsigned)which < NVML_P2P_CAPS_INDEX_UNKNOWN);
  bool links = connected(one, other);
  if (which == NVML_P2P_CAPS_INDEX_NVLINK)
    *status = links ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
  else
    *status = links || level(one, other) < NVML_TOPOLOGY_SYSTEM ? NVML_P2P_STATUS_OK
                                                                : NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED;
  return NVML_SUCCESS;
}

#define LINK(device, number)                                              \
  GPU(device);                                                            \
  NEEDS((number) < NVML_NVLINK_MAX_LINKS);                                \
  const json *link_ = link_of(gpu, number);                               \
  if (!link_) return NVML_ERROR_NOT_SUPPORTED

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active) {
  LINK(device, link);
  NEEDS(active);
  *active = (nvmlEnableState_t)json_bool(link_, "active", true);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version) {
  LINK(device, link);
  NEEDS(version);
  *version = (unsigned)json_num(gpu, "nvlink_version", 1);
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link,
                                                  nvmlNvLinkCapability_t capability, unsigned int *result) {
  LINK(device, link);
  NEEDS(result && (unsigned)capability < NVML_NVLINK_CAP_COUNT);
  *result = capability != NVML_NVLINK_CAP_SLI_BRIDGE;
  return NVML_SUCCESS;
}

/* A peer that is lost or gone still has its address on the link: the other end of a wire does not move. */
EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *info) {
  LINK(device, link);
  NEEDS(info);
  if (!json_bool(link_, "active", true)) return NVML_ERROR_NOT_SUPPORTED;
  unsigned domain = 0, bus = (unsigned)json_num(link_, "bus", 0), slot = 0, id = 0x22a310de;
  for (const json *at = json_at(json_get(si_state, "gpus"), 0); at; at = at->next) {
    if (strcmp(json_str(at, "uuid", ""), json_str(link_, "peer", "?"))) continue;
    const json *pci = json_get(at, "pci");
    domain = (unsigned)json_num(pci, "domain", 0);
    bus = (unsigned)json_num(pci, "bus", 0);
    slot = (unsigned)json_num(pci, "device", 0);
    id = (unsigned)json_num(pci, "device_id", 0) << 16 | 0x10deu;
  }
  memset(info, 0, sizeof *info);
  info->domain = domain;
  info->bus = bus;
  info->device = slot;
  info->pciDeviceId = id;
  snprintf(info->busId, sizeof info->busId, "%08X:%02X:%02X.0", domain, bus, slot);
  snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "%04X:%02X:%02X.0", domain & 0xffff, bus & 0xff, slot & 0x1f);
  return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *info) {
  return nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, info);
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link,
                                                        nvmlIntNvLinkDeviceType_t *type) {
  LINK(device, link);
  NEEDS(type);
  *type = strcmp(json_str(link_, "type", "gpu"), "switch") ? NVML_NVLINK_DEVICE_TYPE_GPU : NVML_NVLINK_DEVICE_TYPE_SWITCH;
  return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link,
                                                    nvmlNvLinkErrorCounter_t counter, unsigned long long *value) {
  LINK(device, link);
  NEEDS(value && (unsigned)counter < NVML_NVLINK_ERROR_COUNT);
  *value = (unsigned long long)json_num(link_, "errors", 0);
  return NVML_SUCCESS;
}

static bool switched(const json *gpu) {
  const json *first = link_of(gpu, 0);
  return first && !strcmp(json_str(first, "type", "gpu"), "switch");
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
  GPU(device);
  NEEDS(info);
  memset(info, 0, sizeof *info);
  info->state = switched(gpu) ? NVML_GPU_FABRIC_STATE_COMPLETED : NVML_GPU_FABRIC_STATE_NOT_SUPPORTED;
  return NVML_SUCCESS;
}

/* Versions 2 and 3 differ by one field at the end. */
EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
  GPU(device);
  NEEDS(info);
  if (info->version != nvmlGpuFabricInfo_v2 && info->version != nvmlGpuFabricInfo_v3)
    return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  memset(info->clusterUuid, 0, sizeof info->clusterUuid);
  info->status = NVML_SUCCESS;
  info->cliqueId = 0;
  info->state = switched(gpu) ? NVML_GPU_FABRIC_STATE_COMPLETED : NVML_GPU_FABRIC_STATE_NOT_SUPPORTED;
  info->healthMask = 0;
  if (info->version == nvmlGpuFabricInfo_v3) info->healthSummary = 0;
  return NVML_SUCCESS;
}
