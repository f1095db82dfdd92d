/* A driver of one GPU whose memory is the host's, for tests of edge/runtime/device.py.

   It is strict where a real one is: memory and streams need a current context; an address of the
   "device" is useless to the host (TAG is added to it); queued work runs when its stream is
   synchronised, not before. fake_live() counts what was not given back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TAG 0x4000000000000000ull
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201 };

typedef struct { void *to; const void *from; size_t bytes; void (*work)(void); } Op;
typedef struct { Op ops[64]; int count; } Queue;

static __thread int depth;
static int live, retained, device_count = 1;

int fake_live(void) { return live + retained; }
int fake_depth(void) { return depth; }
void fake_devices(int count) { device_count = count; }
void *fake_host(uint64_t device) { return (void *)(uintptr_t)(device - TAG); }
void fake_enqueue(Queue *queue, void (*work)(void)) {
    queue->ops[queue->count++] = (Op){0, 0, 0, work};
}

int cuInit(unsigned flags) { return flags ? INVALID : device_count ? OK : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = 12060; return OK; }
int cuDeviceGetCount(int *count) { *count = device_count; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index < device_count ? OK : 101; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Fake Orin", length);
    return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 18 ? 1 : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return *value < 0 ? INVALID : OK;
}
int cuGetErrorName(int status, const char **name) {
    *name = status == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : status == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
          : status == 101 ? "CUDA_ERROR_INVALID_DEVICE"
          : status == NO_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &retained;
    return retained++, OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return retained--, OK; }
int cuCtxPushCurrent_v2(void *context) { return context == &retained ? (depth++, OK) : NO_CONTEXT; }
int cuCtxPopCurrent_v2(void **context) {
    *context = &retained;
    return depth ? (depth--, OK) : NO_CONTEXT;
}

static int take(void **memory, size_t bytes) {
    if (!depth || !retained) return NO_CONTEXT;
    if (bytes > 1u << 30) return NO_MEMORY;
    *memory = calloc(1, bytes);
    return live++, OK;
}
static int give(void *memory) {
    if (!depth || !retained) return NO_CONTEXT;
    free(memory);
    return live--, OK;
}
int cuMemAlloc_v2(uint64_t *device, size_t bytes) {
    void *memory = 0;
    int status = take(&memory, bytes);
    *device = (uint64_t)(uintptr_t)memory + TAG;
    return status;
}
int cuMemFree_v2(uint64_t device) { return give(fake_host(device)); }
int cuMemHostAlloc(void **host, size_t bytes, unsigned flags) { return take(host, bytes); }
int cuMemFreeHost(void *host) { return give(host); }
int cuStreamCreate(void **stream, unsigned flags) { return take(stream, sizeof(Queue)); }
int cuStreamDestroy_v2(void *stream) { return give(stream); }

static int copy(Queue *queue, void *to, const void *from, size_t bytes) {
    if (!depth || queue->count == 64) return depth ? INVALID : NO_CONTEXT;
    queue->ops[queue->count++] = (Op){to, from, bytes, 0};
    return OK;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Queue *queue) {
    return copy(queue, fake_host(to), from, bytes);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Queue *queue) {
    return copy(queue, to, fake_host(from), bytes);
}
int cuStreamSynchronize(Queue *queue) {
    if (!depth) return NO_CONTEXT;
    for (int i = 0; i < queue->count; i++) {
        Op *op = &queue->ops[i];
        if (op->work) op->work(); else memcpy(op->to, op->from, op->bytes);
    }
    return queue->count = 0, OK;
}
