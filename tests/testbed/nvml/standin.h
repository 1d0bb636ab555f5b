/* What the parts of the NVML stand-in share.
 *
 * Every public function takes the lock, reads the state file again when it changed, answers from the tree,
 * and lets go. Handles are small objects that live as long as the process and name a UUID; what they point
 * to is looked up at each call, so a steered change shows in the very next call. */
#ifndef STANDIN_H
#define STANDIN_H
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#include <stdbool.h>
#include <stddef.h>

#include "json.h"

#define EXPORT __attribute__((visibility("default")))
#define NO_INSTANCE 0xFFFFFFFFu

struct handle {
  char uuid[96];
  bool mig;
};

/* The state, valid while the lock is held. */
extern const json *si_state;

int si_lock(void);
void si_unlock(const int *token);
/* NVML_SUCCESS when the library is initialised; reads the state file when it changed. */
nvmlReturn_t si_ready(void);
/* The GPU behind `device` and, for a MIG handle, its instance (else NULL). Knows lost GPUs, and the error that
 * the state asks `function` to fail with. */
nvmlReturn_t si_resolve(nvmlDevice_t device, const char *function, const json **gpu, const json **mig);
nvmlDevice_t si_handle(const char *uuid, bool mig);
/* GPUs this process may see, in index order; at most `room` of them are stored. */
unsigned si_visible(const json **gpus, unsigned room);
nvmlReturn_t si_text(const char *from, char *to, unsigned length);
const char *si_directory(void);
int si_position(const json *gpu);

#define LOCKED __attribute__((cleanup(si_unlock), unused)) int token_ = si_lock()
#define ENTER                                  \
  LOCKED;                                      \
  do {                                         \
    nvmlReturn_t rc_ = si_ready();             \
    if (rc_ != NVML_SUCCESS) return rc_;       \
  } while (0)
#define NEEDS(condition)                       \
  do {                                         \
    if (!(condition)) return NVML_ERROR_INVALID_ARGUMENT; \
  } while (0)
/* A GPU or a MIG device: `gpu` is the (parent) GPU, `mig` the instance or NULL. */
#define ANY(device)                            \
  ENTER;                                       \
  const json *gpu = NULL, *mig = NULL;         \
  do {                                         \
    nvmlReturn_t rc_ = si_resolve(device, __func__, &gpu, &mig); \
    if (rc_ != NVML_SUCCESS) return rc_;       \
    (void)gpu, (void)mig;                      \
  } while (0)
/* A whole GPU: what NVML refuses on a MIG device. */
#define GPU(device)                            \
  ANY(device);                                 \
  if (mig) return NVML_ERROR_NOT_SUPPORTED

#endif
