// Lets g++ compile kernels.cu for the host: g++ -x c++ -include host_shim.h kernels.cu
//
// A kernel named in HOST_ENTRY(k) gets `k_bind(grid, block, params, buffer)`, which copies its arguments
// as cuLaunchKernel does, from where params points or from a buffer of them, and returns a launch for host_run(). fake_libcuda.c calls both. A kernel with
// barriers is named in HOST_ENTRY_BLOCK(k): its threads run as fibers that change at each barrier.
//
// Strict where a GPU is: a pointer must be one of the fake device (TAG is in it), never the host's.
// host_shuffle(seed) makes blocks, and threads without barriers, run in another order.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __syncthreads() host_shim::barrier()

struct uint3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int4 { int x, y, z, w; };
static thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

template <class T> static inline T __ldg(const T *p) { return *p; }
static inline unsigned atomicAdd(unsigned *p, unsigned n) { return (*p += n) - n; }
static inline unsigned long long atomicOr(unsigned long long *p, unsigned long long n) {
    return std::exchange(*p, *p | n);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
static inline int __ffsll(unsigned long long x) { return __builtin_ffsll((long long)x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline unsigned __float_as_uint(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }

namespace host_shim {
constexpr std::uintptr_t TAG = 0x4000000000000000ull;
static unsigned shuffle_seed;

template <class T> T received(T value) {
    if constexpr (std::is_pointer_v<T>) {
        auto address = reinterpret_cast<std::uintptr_t>(value);
        if (address && !(address & TAG)) {
            std::fprintf(stderr, "a kernel was given a host address\n");
            std::abort();
        }
        return address ? reinterpret_cast<T>(address - TAG) : nullptr;
    } else {
        return value;
    }
}

static std::vector<unsigned> order(unsigned count, unsigned salt) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0u);
    if (shuffle_seed) std::shuffle(all.begin(), all.end(), std::mt19937(shuffle_seed + salt));
    return all;
}

struct Launch {
    uint3 grid, block;
    virtual ~Launch() = default;
    virtual void thread() const = 0;
    virtual void run_block() const {
        for (unsigned t : order(block.x * block.y * block.z, blockIdx.x)) {
            threadIdx = {t % block.x, t / block.x % block.y, t / block.x / block.y};
            thread();
        }
    }
    void run() const {
        gridDim = grid;
        blockDim = block;
        for (unsigned b : order(grid.x * grid.y * grid.z, 1)) {
            blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
            run_block();
        }
    }
};

// ---- blocks with barriers: one fiber for each thread, resumed in turn
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[64 << 10]};
    uint3 index;
    bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::size_t running;
static const Launch *launched;

static void barrier() { swapcontext(&fibers[running].context, &scheduler); }
static void body() {
    launched->thread();
    fibers[running].done = true;
}

static void run_fibers(const Launch &launch) {
    const unsigned count = launch.block.x;  // blocks of one dimension
    if (fibers.size() < count) fibers = std::vector<Fiber>(count);
    launched = &launch;
    for (unsigned t = 0; t < count; ++t) {
        Fiber &fiber = fibers[t];
        fiber.index = {t, 0, 0};
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = 64 << 10;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, body, 0);
    }
    for (unsigned round = 0, left = count; left; ++round)
        for (unsigned t : order(count, round)) {
            if (fibers[t].done) continue;
            running = t;
            threadIdx = fibers[t].index;
            swapcontext(&scheduler, &fibers[t].context);
            left -= fibers[t].done;
        }
}

template <bool Barriers, class... A> struct Bound : Launch {
    void (*kernel)(A...);
    std::tuple<A...> arguments;
    void thread() const override { std::apply(kernel, arguments); }
    void run_block() const override {
        if constexpr (Barriers) run_fibers(*this); else Launch::run_block();
    }
};

// An argument buffer (PyCUDA's way) holds the values one after the other, each at its alignment.
template <class... A> std::vector<void *> spread(char *buffer) {
    std::vector<void *> places;
    std::size_t at = 0;
    ((at = (at + alignof(A) - 1) / alignof(A) * alignof(A), places.push_back(buffer + at),
      at += sizeof(A)), ...);
    return places;
}

template <bool Barriers, class... A, std::size_t... I>
Launch *bind(void (*kernel)(A...), const unsigned *g, const unsigned *b, void **params,
             char *buffer, std::index_sequence<I...>) {
    std::vector<void *> places;
    if (!params) places = spread<A...>(buffer), params = places.data();
    auto *launch = new Bound<Barriers, A...>;
    launch->grid = {g[0], g[1], g[2]};
    launch->block = {b[0], b[1], b[2]};
    launch->kernel = kernel;
    launch->arguments = {received(*static_cast<A *>(params[I]))...};
    return launch;
}
template <bool Barriers, class... A>
Launch *bind(void (*kernel)(A...), const unsigned *g, const unsigned *b, void **p, char *buffer) {
    return bind<Barriers>(kernel, g, b, p, buffer, std::index_sequence_for<A...>{});
}
}  // namespace host_shim

extern "C" void host_run(host_shim::Launch *launch) { launch->run(); }
extern "C" void host_free(host_shim::Launch *launch) { delete launch; }
extern "C" void host_shuffle(unsigned seed) { host_shim::shuffle_seed = seed; }

#define HOST_ENTRY(k)                                                                    \
    extern "C" void *k##_bind(const unsigned *g, const unsigned *b, void **p, char *a) { \
        return host_shim::bind<false>(k, g, b, p, a);                                    \
    }
#define HOST_ENTRY_BLOCK(k)                                                              \
    extern "C" void *k##_bind(const unsigned *g, const unsigned *b, void **p, char *a) { \
        return host_shim::bind<true>(k, g, b, p, a);                                     \
    }
