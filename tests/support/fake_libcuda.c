/* A driver of one GPU whose memory is the host's, for tests of edge/runtime.

   It is strict where a real one is: memory, streams and kernels need a current context; an address
   of the "device" is useless to the host (TAG is added to it); queued work runs when its stream is
   synchronised, not before; a captured stream takes no synchronisation. fake_live() counts what was
   not given back. A module's image is the path of kernels.cu compiled for the host (host_shim.h). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TAG 0x4000000000000000ull
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NO_ORDINAL = 101, NO_CONTEXT = 201,
       BAD_IMAGE = 200, BAD_HANDLE = 400, NOT_FOUND = 500, CAPTURING = 900, NOT_CAPTURING = 901 };

typedef void Work(void);
typedef struct { double ms; int recorded; } Event;
typedef struct { void *library; void (*run)(void *), (*free)(void *); } Module;
typedef void *Bind(const unsigned *, const unsigned *, void **, void *);
typedef struct { Module *module; Bind *bind; } Kernel;
typedef struct {
    void *to; const void *from; size_t bytes;   /* a copy, or */
    uint32_t value; int fills;                  /* a fill, or */
    Work *work; Event *event;                   /* work, or an event, or */
    Module *module; void *launch;               /* a kernel */
} Op;
typedef struct Queue { Op ops[256]; int count; struct Queue *captured; } Queue;

static __thread int depth;
static int live, retained, device_count = 1, integrated = 1, launches, copies, refuse_capture;
static int init_status;

int fake_live(void) { return live + retained; }
int fake_depth(void) { return depth; }
int fake_launches(void) { return launches; }
int fake_copies(void) { return copies; }
void fake_devices(int count) { device_count = count; }
void fake_integrated(int value) { integrated = value; }
void fake_init(int status) { init_status = status; }
void fake_refuse_capture(int value) { refuse_capture = value; }
void *fake_host(uint64_t device) { return (void *)(uintptr_t)(device - TAG); }

static int put(Queue *queue, Op op) {
    if (!depth) return NO_CONTEXT;
    if (queue->captured) queue = queue->captured;
    if (queue->count == 256) return INVALID;
    queue->ops[queue->count++] = op;
    return OK;
}
int fake_enqueue(Queue *queue, Work *work) { return put(queue, (Op){.work = work}); }

int cuInit(unsigned flags) {
    return flags ? INVALID : init_status ? init_status : device_count ? OK : NO_DEVICE;
}
int cuDriverGetVersion(int *version) { *version = 12060; return OK; }
int cuDeviceGetCount(int *count) { *count = device_count; return OK; }
int cuDeviceGet(int *device, int index) {
    *device = index;
    return index < device_count ? OK : NO_ORDINAL;
}
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Fake Orin", length);
    return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 18 ? integrated : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return *value < 0 ? INVALID : OK;
}
int cuGetErrorName(int status, const char **name) {
    static const struct { int status; const char *name; } names[] = {
        {NO_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {NO_ORDINAL, "CUDA_ERROR_INVALID_DEVICE"}, {NO_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {BAD_IMAGE, "CUDA_ERROR_INVALID_IMAGE"}, {BAD_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {34, "CUDA_ERROR_STUB_LIBRARY"},
        {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}, {999, "CUDA_ERROR_UNKNOWN"},
        {CAPTURING, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {NOT_CAPTURING, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
    *name = "CUDA_ERROR_INVALID_VALUE";
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].status == status) *name = names[i].name;
    return OK;
}
int cuGetErrorString(int status, const char **text) { return cuGetErrorName(status, text); }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &retained;
    return retained++, OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return retained--, OK; }
int cuCtxPushCurrent_v2(void *context) { return context == &retained ? (depth++, OK) : NO_CONTEXT; }
int cuCtxPopCurrent_v2(void **context) {
    if (context) *context = &retained;
    return depth ? (depth--, OK) : NO_CONTEXT;
}
int cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : NO_CONTEXT; }

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
int cuMemHostGetDevicePointer_v2(uint64_t *device, void *host, unsigned flags) {
    *device = (uint64_t)(uintptr_t)host + TAG;
    return depth ? OK : NO_CONTEXT;
}
int cuStreamCreate(Queue **stream, unsigned flags) { return take((void **)stream, sizeof(Queue)); }
int cuStreamDestroy_v2(Queue *stream) { return give(stream); }
int cuEventCreate(Event **event, unsigned flags) { return take((void **)event, sizeof(Event)); }
int cuEventDestroy_v2(Event *event) { return give(event); }

static int copy(Queue *queue, void *to, const void *from, size_t bytes) {
    return copies++, put(queue, (Op){.to = to, .from = from, .bytes = bytes});
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Queue *queue) {
    return copy(queue, fake_host(to), from, bytes);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Queue *queue) {
    return copy(queue, to, fake_host(from), bytes);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Queue *queue) {
    return put(queue, (Op){.to = fake_host(to), .from = fake_host(from), .bytes = bytes});
}
int cuMemsetD32Async(uint64_t to, uint32_t value, size_t count, Queue *queue) {
    return put(queue, (Op){.to = fake_host(to), .value = value, .fills = 1, .bytes = count * 4});
}
int cuEventRecordWithFlags(Event *event, Queue *queue, unsigned flags) {
    if (flags == 1 && !queue->captured) return INVALID;        /* external: in a capture alone */
    if (flags == 0 && queue->captured) return depth ? OK : NO_CONTEXT; /* an order, not a time */
    return put(queue, (Op){.event = event});
}
int cuEventRecord(Event *event, Queue *queue) { return cuEventRecordWithFlags(event, queue, 0); }
int cuEventElapsedTime(float *ms, Event *first, Event *second) {
    *ms = (float)(second->ms - first->ms);
    return first->recorded && second->recorded ? OK : BAD_HANDLE;
}

int cuModuleLoadData(Module **module, const char *image) {
    void *library = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    if (!library) return BAD_IMAGE;
    int status = take((void **)module, sizeof(Module));
    if (!status)
        **module = (Module){library, dlsym(library, "host_run"), dlsym(library, "host_free")};
    return status;
}
int cuModuleLoadDataEx(Module **module, const char *image, unsigned n, int *options, void **values) {
    return cuModuleLoadData(module, image);
}
int cuModuleUnload(Module *module) { return give(module); }
int cuModuleGetFunction(Kernel **kernel, Module *module, const char *name) {
    char symbol[128];
    snprintf(symbol, sizeof symbol, "%s_bind", name);
    Bind *bind = (Bind *)dlsym(module->library, symbol);
    if (!bind) return NOT_FOUND;
    *kernel = malloc(sizeof **kernel); /* a real one lives as long as its module, too */
    **kernel = (Kernel){module, bind};
    return OK;
}
int cuLaunchKernel(Kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, Queue *queue, void **params, void **extra) {
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    if (!depth) return NO_CONTEXT;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz < 1 || bx * by * bz > 1024)
        return INVALID;
    launches++;
    void *launch = kernel->bind(grid, block, params, extra ? extra[1] : 0); /* 0: the tag, 1: where */
    return put(queue, (Op){.module = kernel->module, .launch = launch});
}

int cuStreamBeginCapture_v2(Queue *queue, int mode) {
    if (queue->captured || queue->count || refuse_capture) return INVALID;
    return take((void **)&queue->captured, sizeof(Queue));
}
int cuStreamEndCapture(Queue *queue, Queue **graph) {
    if (!queue->captured) return NOT_CAPTURING;
    *graph = queue->captured;
    return queue->captured = 0, OK;
}
int cuGraphInstantiateWithFlags(Queue **program, Queue *graph, unsigned long long flags) {
    int status = take((void **)program, sizeof(Queue));
    if (!status) **program = *graph;
    return status;
}
int cuGraphDestroy(Queue *graph) { return give(graph); }
int cuGraphExecDestroy(Queue *program) { return give(program); }
int cuGraphLaunch(Queue *program, Queue *queue) {
    int status = OK;
    for (int i = 0; i < program->count && !status; i++) status = put(queue, program->ops[i]);
    return status;
}

static void run(Op *op) {
    struct timespec now;
    if (op->launch) op->module->run(op->launch);
    else if (op->work) op->work();
    else if (op->fills) for (size_t i = 0; i < op->bytes / 4; i++) ((uint32_t *)op->to)[i] = op->value;
    else if (op->event) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        *op->event = (Event){now.tv_sec * 1e3 + now.tv_nsec * 1e-6, 1};
    } else memcpy(op->to, op->from, op->bytes);
}
int cuStreamSynchronize(Queue *queue) {
    if (!depth) return NO_CONTEXT;
    if (queue->captured) return CAPTURING;
    for (int i = 0; i < queue->count; i++) run(&queue->ops[i]);
    return queue->count = 0, OK;
}

/* How cuda-python finds all others; newer versions of a function have suffixes. */
int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *how) {
    static void *self;
    char versioned[128];
    Dl_info info;
    if (!self && dladdr((void *)cuGetProcAddress_v2, &info)) self = dlopen(info.dli_fname, RTLD_NOW);
    snprintf(versioned, sizeof versioned, "%s_v2", symbol);
    *found = dlsym(self, versioned);
    if (!*found) *found = dlsym(self, symbol);
    if (!*found && !strcmp(symbol, "cuGraphInstantiate"))
        *found = dlsym(self, "cuGraphInstantiateWithFlags");
    if (how) *how = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
