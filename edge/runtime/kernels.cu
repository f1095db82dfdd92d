// Pre- and post-processing on the GPU: the twin of ops_cpu.py, which says what the numbers are.
//
// NVRTC or nvcc compile it for the GPU; tests/host_shim.h lets g++ compile it for the tests. So it
// includes nothing. Whatever a kernel needs to know about a frame beforehand comes in small tables.
//
// Atomics hand out slots in any order; every later step orders by (score, candidate's number), so
// the result does not depend on which thread came first.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef HOST_ENTRY
#define HOST_ENTRY(kernel)
#define HOST_ENTRY_BLOCK(kernel)
#endif

// ------------------------------------------------------------------ frame to tensor

struct Bgr {
    int b, g, r;
};

struct Frame {
    const u8 *pixels;
    const u8 *chroma;  // NV12 alone: rows of U, V at half the resolution, of the same pitch
    int pitch;         // bytes from row to row
};

__device__ __forceinline__ int clamp8(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// BT.601, studio range, in 20 binary digits: 1.164, 1.596, -0.813, -0.391, 2.018 as cv2.cvtColor
// rounds them.
__device__ __forceinline__ Bgr from_yuv(int y, int u, int v) {
    const int half = 1 << 19, luma = (y > 16 ? y - 16 : 0) * 1220542;
    u -= 128;
    v -= 128;
    Bgr pixel;
    pixel.b = clamp8((luma + 2116026 * u + half) >> 20);
    pixel.g = clamp8((luma - 852492 * v - 409993 * u + half) >> 20);
    pixel.r = clamp8((luma + 1673527 * v + half) >> 20);
    return pixel;
}

// Two pixels of one row, which are neighbours or, at an edge, the same.
struct Pair {
    Bgr left, right;
};

// Their six bytes lie in two or three aligned words: fewer loads than bytes, whatever the pitch. No
// word is read that holds none of them, and none waits for a branch.
struct FromBgr {
    __device__ __forceinline__ Pair operator()(const Frame &frame, int x0, int x1, int y) const {
        u64 at = (u64)(frame.pixels + (long long)y * frame.pitch + x0 * 3);
        const u32 *words = (const u32 *)(at & ~3ull);
        u32 skip = (u32)(at & 3), step = x1 - x0, last = skip + step * 3 + 2;
        u32 a = __ldg(words), b = __ldg(words + (last > 3)), c = __ldg(words + last / 4);
        u32 low = __funnelshift_r(a, b, skip * 8), high = __funnelshift_r(b, c, skip * 8);
        Pair pair = {pixel(low), pixel(__funnelshift_r(low, high, step * 24))};
        return pair;
    }
    __device__ __forceinline__ static Bgr pixel(u32 bytes) {
        Bgr one = {(int)(bytes & 255), (int)(bytes >> 8 & 255), (int)(bytes >> 16 & 255)};
        return one;
    }
};

struct FromNv12 {
    __device__ __forceinline__ Pair operator()(const Frame &frame, int x0, int x1, int y) const {
        Pair pair = {pixel(frame, x0, y), pixel(frame, x1, y)};
        return pair;
    }
    __device__ __forceinline__ static Bgr pixel(const Frame &frame, int x, int y) {
        const u8 *chroma = frame.chroma + (long long)(y >> 1) * frame.pitch + (x & ~1);
        int luma = __ldg(frame.pixels + (long long)y * frame.pitch + x);
        return from_yuv(luma, __ldg(chroma), __ldg(chroma + 1));
    }
};

struct FromYuyv {
    __device__ __forceinline__ Pair operator()(const Frame &frame, int x0, int x1, int y) const {
        Pair pair = {pixel(frame, x0, y), pixel(frame, x1, y)};
        return pair;
    }
    __device__ __forceinline__ static Bgr pixel(const Frame &frame, int x, int y) {
        const u8 *row = frame.pixels + (long long)y * frame.pitch, *pair = row + (x & ~1) * 2;
        return from_yuv(__ldg(row + x * 2), __ldg(pair + 1), __ldg(pair + 3));
    }
};

// cv2.resize's arithmetic for bytes: weights of 11 binary digits, then 8 bits again.
__device__ __forceinline__ int blend(int a, int b, int c, int d, int4 across, int4 down) {
    int top = a * across.z + b * across.w, bottom = c * across.z + d * across.w;
    return ((down.z * (top >> 4) >> 16) + (down.w * (bottom >> 4) >> 16) + 2) >> 2;
}

// One thread makes one pixel of all three planes. `across` and `down` hold, for each column and row
// of the resized frame, two source positions and their weights; `levels` what each byte becomes in
// each plane, 3 x 256 (mean, scale and cast); `pad` is the border's byte.
template <class Source, class Out>
__device__ __forceinline__ void letterbox(Frame frame, const int4 *across, const int4 *down,
                                          const Out *levels, Out *tensor, int width, int height,
                                          int left, int top, int inner_width, int inner_height,
                                          int rgb, int pad) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int u = x - left, v = y - top, plane = width * height;
    Bgr out = {pad, pad, pad};
    if (u >= 0 && v >= 0 && u < inner_width && v < inner_height) {
        int4 h = __ldg(across + u), w = __ldg(down + v);
        Source read;
        Pair a = read(frame, h.x, h.y, w.x), b = read(frame, h.x, h.y, w.y);
        out.b = blend(a.left.b, a.right.b, b.left.b, b.right.b, h, w);
        out.g = blend(a.left.g, a.right.g, b.left.g, b.right.g, h, w);
        out.r = blend(a.left.r, a.right.r, b.left.r, b.right.r, h, w);
    }
    tensor += y * width + x;
    tensor[0] = __ldg(levels + (rgb ? out.r : out.b));
    tensor[plane] = __ldg(levels + 256 + out.g);
    tensor[2 * plane] = __ldg(levels + 512 + (rgb ? out.b : out.r));
}

#define LETTERBOX(name, Source, Out)                                                             \
    extern "C" __global__ void name(const u8 *pixels, const u8 *chroma, int pitch,               \
                                    const int4 *across, const int4 *down, const Out *levels,     \
                                    Out *tensor, int width, int height, int left, int top,       \
                                    int inner_width, int inner_height, int rgb, int pad) {       \
        Frame frame = {pixels, chroma, pitch};                                                   \
        letterbox<Source, Out>(frame, across, down, levels, tensor, width, height, left, top,    \
                               inner_width, inner_height, rgb, pad);                             \
    }                                                                                            \
    HOST_ENTRY(name)

// A half is moved, never computed with: its bits do.
LETTERBOX(letterbox_bgr_float32, FromBgr, float)
LETTERBOX(letterbox_bgr_float16, FromBgr, u16)
LETTERBOX(letterbox_nv12_float32, FromNv12, float)
LETTERBOX(letterbox_nv12_float16, FromNv12, u16)
LETTERBOX(letterbox_yuyv_float32, FromYuyv, float)
LETTERBOX(letterbox_yuyv_float16, FromYuyv, u16)

// ------------------------------------------------------------------ heads to candidates

// What passed the threshold, in any order. A key sorts by score, then by the lower number first.
struct Candidates {
    u64 *keys;
    float4 *boxes;
    int *labels;
    u32 *count;
};

__device__ __forceinline__ void append(Candidates to, float score, u32 number, float4 box, int label) {
    u32 slot = atomicAdd(to.count, 1u);
    to.keys[slot] = (u64)__float_as_uint(score) << 32 | (0xffffffffu - number);
    to.boxes[slot] = box;
    to.labels[slot] = label;
}

// Comparisons, not fminf: a NaN must stay one, and then fails every test that follows.
__device__ __forceinline__ float bound(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-bound(x, -40.f, 40.f))); }

enum { SOFTMAX, SIGMOID, LINEAR };

__device__ __forceinline__ float probability(const float *logits, int classes, int step, float top,
                                             int activation) {
    if (activation == SIGMOID) return sigmoid(top);
    if (activation == LINEAR) return top;
    float sum = 0.f;
#pragma unroll 8
    for (int c = 0; c < classes; ++c) sum += expf(bound(__ldg(logits + c * step) - top, -40.f, 0.f));
    return 1.f / sum;
}

// Where a head lies and what its boxes are made of. A field of its anchor `a` is the plane
// `at + a * step`, for boxes, objectness and classes.
struct Head {
    long long raw;         // floats from the first head's memory to this one's
    int first, end;        // its candidates' numbers
    int anchors;           // its first one in the table of all
    int columns, cells;
    int box_at, box_step, object_at, object_step, class_at, class_step;
    int convdet;
    float step_x, step_y, stretch;
};

// One thread looks at one anchor of one cell; all heads in one launch.
extern "C" __global__ void decode(const float *raw, const Head *heads, const float2 *anchors, int count,
                                  int classes, int activation, int multi_label, float gate,
                                  float score, u64 *keys, float4 *boxes, int *labels, u32 *found) {
    int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    while (number >= heads->end) ++heads;
    const Head head = *heads;
    int i = number - head.first, cells = head.cells, a = i / cells, cell = i - a * cells;
    raw += head.raw + cell;
    float objectness = __ldg(raw + (head.object_at + a * head.object_step) * cells);
    if (!(objectness > gate)) return;
    objectness = sigmoid(objectness);

    const float *box = raw + (head.box_at + a * head.box_step) * cells;
    float2 anchor = __ldg(anchors + head.anchors + a);
    float x = (float)(cell % head.columns), y = (float)(cell / head.columns);
    float tx = __ldg(box), ty = __ldg(box + cells);
    float width = anchor.x * expf(bound(__ldg(box + 2 * cells), -1e30f, 20.f)) / 2.f;
    float height = anchor.y * expf(bound(__ldg(box + 3 * cells), -1e30f, 20.f)) / 2.f;
    if (head.convdet) {
        x = (x + 1.f) * head.step_x + tx * anchor.x;
        y = (y + 1.f) * head.step_y + ty * anchor.y;
    } else {
        x = (x + (sigmoid(tx) * head.stretch - (head.stretch - 1.f) / 2.f)) * head.step_x;
        y = (y + (sigmoid(ty) * head.stretch - (head.stretch - 1.f) / 2.f)) * head.step_y;
    }
    float4 corners = {x - width, y - height, x + width, y + height};
    if (!(corners.z - corners.x > 0.f && corners.w - corners.y > 0.f)) return;

    const float *logits = raw + (head.class_at + a * head.class_step) * cells;
    Candidates to = {keys, boxes, labels, found};
    if (multi_label) {
        for (int c = 0; c < classes; ++c) {
            float each = sigmoid(__ldg(logits + c * cells)) * objectness;
            if (each > score) append(to, each, number * classes + c, corners, c);
        }
        return;
    }
    int best = 0;
    float top = __ldg(logits);
    // The first NaN stays, as in numpy. Without a branch the loads of several classes run at once.
#pragma unroll 8
    for (int c = 1; c < classes; ++c) {
        float each = __ldg(logits + c * cells);
        bool better = (top == top) & !(each <= top);
        top = better ? each : top;
        best = better ? c : best;
    }
    float each = probability(logits, classes, cells, top, activation) * objectness;
    if (each > score) append(to, each, number, corners, best);
}
HOST_ENTRY(decode)

// ------------------------------------------------------------------ heads of other networks

enum { BOX, OBJECTNESS, CLASSES, LABEL, KINDS };
enum { GRID, PRIORS, DISTANCES, CORNERS, CENTRE };
enum { NONE, SIGMOID_OF, TANH_OF, EXP_OF, SOFTMAX_OF };

// Where the numbers of one kind lie: the first, then to the next anchor among the columns, to the
// next row of candidates, and to the next column; in floats.
struct Part {
    long long at;  // from the first output's memory; less than nothing where a head has none
    int anchor, down, across, width;
};

struct AnyHead {
    int first, end, rows;
    int fill;
    Part parts[KINDS];
};

// What the numbers mean; one for all heads. See BoxCoding and ScoreCoding in spec.py.
struct Coding {
    int form, activation, size, squared, bins, order_yx, clip;
    int class_activation, object_activation, background, first_label;
    float variance, object_power, class_power, unit_x, unit_y, width, height;
};

__device__ __forceinline__ float activated(float x, int how) {
    return how == SIGMOID_OF ? sigmoid(x) : how == TANH_OF ? tanhf(x) : how == EXP_OF ? expf(bound(x, -1e30f, 20.f)) : x;
}

__device__ __forceinline__ float raised(float x, float power) { return power == 1.f ? x : powf(x, power); }

// One of a box's four numbers; with bins the mean of their distribution.
__device__ __forceinline__ float number_of(const float *box, int which, int across, int bins) {
    if (!bins) return __ldg(box + which * across);
    const float *own = box + (long long)which * bins * across;
    float top = __ldg(own), sum = 0.f, mean = 0.f;
    for (int k = 1; k < bins; ++k) top = __ldg(own + k * across) > top ? __ldg(own + k * across) : top;
    for (int k = 0; k < bins; ++k) {
        float weight = expf(__ldg(own + k * across) - top);
        sum += weight;
        mean += weight * (float)k;
    }
    return mean / sum;
}

// `table` has six numbers for each candidate: origin and step of its centre, half its anchor.
__device__ __forceinline__ float4 box_of(const float *box, int across, const Coding &c, const float *table,
                                         int count, int number) {
    float of[4];
#pragma unroll 1
    for (int k = 0; k < 4; ++k) of[k ^ c.order_yx] = number_of(box, k, across, c.bins);
    float a = of[0], b = of[1], d = of[2], e = of[3];
    float4 corners;
    if (c.form == CORNERS || c.form == CENTRE) {
        a *= c.unit_x, b *= c.unit_y, d *= c.unit_x, e *= c.unit_y;
        float4 plain = {a, b, d, e}, centred = {a - d / 2.f, b - e / 2.f, a + d / 2.f, b + e / 2.f};
        corners = c.form == CORNERS ? plain : centred;
    } else {
        float x = __ldg(table + number), y = __ldg(table + count + number);
        float step_x = __ldg(table + 2 * count + number), step_y = __ldg(table + 3 * count + number);
        float half_x = __ldg(table + 4 * count + number), half_y = __ldg(table + 5 * count + number);
        if (c.form == DISTANCES) {
            float4 sides = {x - step_x * a, y - step_y * b, x + step_x * d, y + step_y * e};
            corners = sides;
        } else {
            if (c.form == PRIORS) {
                d = activated(d * c.variance, EXP_OF), e = activated(e * c.variance, EXP_OF);
            } else {
                a = activated(a, c.activation), b = activated(b, c.activation);
                d = activated(d, c.size), e = activated(e, c.size);
                if (c.squared) d = 4.f * d * d, e = 4.f * e * e;
            }
            x += step_x * a, y += step_y * b, half_x *= d, half_y *= e;
            float4 centred = {x - half_x, y - half_y, x + half_x, y + half_y};
            corners = centred;
        }
    }
    if (c.clip) {
        corners.x = bound(corners.x, 0.f, c.width), corners.z = bound(corners.z, 0.f, c.width);
        corners.y = bound(corners.y, 0.f, c.height), corners.w = bound(corners.w, 0.f, c.height);
    }
    return corners;
}

// One thread looks at one candidate; all heads in one launch.
extern "C" __global__ void decode_any(const float *base, const AnyHead *heads, const Coding *coding,
                                      const float *table, int count, int classes, int multi_label,
                                      float score, u64 *keys, float4 *boxes, int *labels, u32 *found) {
    int number = blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= count) return;
    while (number >= heads->end) ++heads;
    const Coding c = *coding;
    int i = number - heads->first, anchor = i / heads->rows, row = i - anchor * heads->rows;
    const float *of[KINDS];
    for (int kind = 0; kind < KINDS; ++kind) {
        const Part &part = heads->parts[kind];
        of[kind] = part.width ? base + part.at + (long long)anchor * part.anchor + (long long)row * part.down : 0;
    }
    float whole = 1.f;
    if (of[OBJECTNESS]) {
        whole = raised(activated(__ldg(of[OBJECTNESS]), c.object_activation), c.object_power);
        // Nothing that it is multiplied with is above 1.
        if (!(whole > score)) return;
    }
    Candidates to = {keys, boxes, labels, found};
    const Part &box = heads->parts[BOX], &part = heads->parts[CLASSES];
    int best = 0;
    float top = 1.f;
    if (of[LABEL]) {
        best = (int)rintf(bound(__ldg(of[LABEL]), -1e9f, 1e9f)) - c.first_label;
        if (best < 0 || best >= classes) return;
        top = activated(__ldg(of[CLASSES]), c.class_activation);
    } else if (of[CLASSES]) {
        const float *own = of[CLASSES] + (c.background == 1 ? part.across : 0);
        float most = 0.f, sum = 1.f;
        if (c.class_activation == SOFTMAX_OF) {
            most = __ldg(of[CLASSES]);
            for (int k = 1; k < part.width; ++k) {
                float each = __ldg(of[CLASSES] + k * part.across);
                most = each > most ? each : most;
            }
            sum = 0.f;
            for (int k = 0; k < part.width; ++k) sum += expf(__ldg(of[CLASSES] + k * part.across) - most);
        }
        top = __ldg(own);
#pragma unroll 8
        for (int k = 1; k < classes; ++k) {
            float each = __ldg(own + k * part.across);
            bool better = each > top;
            top = better ? each : top;
            best = better ? k : best;
        }
        top = c.class_activation == SOFTMAX_OF ? expf(top - most) / sum : activated(top, c.class_activation);
        top = raised(top, c.class_power);
    }
    if (!(whole * top > score)) return;
    float4 corners = box_of(of[BOX], box.across, c, table, count, number);
    if (!(corners.z > corners.x && corners.w > corners.y)) return;
    if (!multi_label || !of[CLASSES]) {
        append(to, whole * top, number, corners, best);
        return;
    }
    const float *own = of[CLASSES] + (c.background == 1 ? part.across : 0);
    for (int k = 0; k < classes; ++k) {
        float each = raised(activated(__ldg(own + k * part.across), c.class_activation), c.class_power) * whole;
        if (each > score) append(to, each, number * classes + k, corners, k);
    }
}
HOST_ENTRY(decode_any)

// Detections that are there already, as candidates: for suppression alone.
extern "C" __global__ void collect(const float4 *from, const float *scores, const int *classes, int count,
                                   u64 *keys, float4 *boxes, int *labels, u32 *found) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    Candidates to = {keys, boxes, labels, found};
    if (i < count && scores[i] > 0.f) append(to, scores[i], i, from[i], classes[i]);
}
HOST_ENTRY(collect)

// ------------------------------------------------------------------ candidates to detections

// Sorting by counting: a candidate's place is the number of those before it. The first `top` stay.
// A block places 32 candidates; each of its warps counts among every eighth.
extern "C" __global__ void rank(const u64 *keys, const float4 *boxes, const int *labels, const u32 *found,
                                u32 top, float4 *sorted_boxes, float *sorted_scores,
                                int *sorted_labels) {
    __shared__ u32 places[32];
    u32 lane = threadIdx.x & 31, slice = threadIdx.x >> 5, i = blockIdx.x * 32 + lane, count = *found;
    if (blockIdx.x * 32 >= count) return;
    if (slice == 0) places[lane] = 0;
    __syncthreads();
    u64 mine = i < count ? keys[i] : 0;
    u32 before = 0, turns = (count + 7 - slice) / 8;
#pragma unroll 8
    for (u32 turn = 0; turn < turns; ++turn) before += keys[turn * 8 + slice] > mine;
    atomicAdd(places + lane, before);
    __syncthreads();
    u32 place = places[lane];
    if (slice > 0 || i >= count || place >= top) return;
    sorted_boxes[place] = boxes[i];
    sorted_scores[place] = __uint_as_float((u32)(mine >> 32));
    sorted_labels[place] = labels[i];
}
HOST_ENTRY_BLOCK(rank)

__device__ __forceinline__ float area(float4 box) { return (box.z - box.x) * (box.w - box.y); }

__device__ __forceinline__ float intersection(float4 a, float4 b) {
    float width = (a.z < b.z ? a.z : b.z) - (a.x > b.x ? a.x : b.x);
    float height = (a.w < b.w ? a.w : b.w) - (a.y > b.y ? a.y : b.y);
    return width > 0.f && height > 0.f ? width * height : 0.f;
}

// Bit k of word w of box i: box 64 w + k comes later, is of its class and overlaps it too much.
// A word's rows lie side by side, `top` of them.
extern "C" __global__ void overlap(const float4 *boxes, const int *labels, const u32 *found, u32 top,
                                   float iou, int exclusive, u64 *mask) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * 64;
    u32 count = *found < top ? *found : top;
    if (i >= count || first >= count || first + 63 <= i) return;
    float4 mine = boxes[i];
    float my_area = area(mine);
    int label = labels[i];
    u64 word = 0;
    for (u32 group = first; group < first + 64 && group < count; group += 8) {
        float4 others[8];
        int theirs[8];
#pragma unroll
        for (u32 k = 0; k < 8; ++k) {
            u32 j = group + k < count ? group + k : count - 1;
            others[k] = boxes[j];
            theirs[k] = labels[j];
        }
#pragma unroll
        for (u32 k = 0; k < 8; ++k) {
            u32 j = group + k;
            if (j <= i || j >= count || (theirs[k] != label && !exclusive)) continue;
            float both = intersection(mine, others[k]);
            if (both / (my_area + area(others[k]) - both) > iou) word |= 1ull << (j - first);
        }
    }
    mask[(u64)blockIdx.y * top + i] = word;
}
HOST_ENTRY(overlap)

struct Row {
    float x0, y0, x1, y1, score;
    int label;
};

// Greedy suppression by one block, 64 boxes at a time. Within these only a box that overlaps a later
// one has a say; all threads go through those and come to the same decision. Then sixteen threads for
// each later word gather what the kept boxes suppress there.
// Row 0 of the result tells how many follow (label) and how many candidates there were (in x0's
// bits). 64 words hold 4096 boxes: `top` is at most that.
extern "C" __global__ void keep(const float4 *boxes, const float *scores, const int *labels,
                                const u32 *found, u32 top, u32 limit, const u64 *mask, Row *result) {
    __shared__ u64 gone[64];      // bit k of word w: box 64 w + k is suppressed
    __shared__ u64 diagonal[64];  // the mask's part within the chunk
    __shared__ u64 acting[2];     // its rows that are not zero, of even and odd chunks
    u32 t = threadIdx.x, count = *found < top ? *found : top, words = (count + 63) / 64, total = 0;
    if (t < 64) gone[t] = 0;
    if (t == 0) acting[0] = 0;
    for (u32 chunk = 0; chunk < words && total < limit; ++chunk) {
        u32 base = chunk * 64, size = count - base < 64 ? count - base : 64, i = base + t;
        __syncthreads();
        if (t == 0) acting[~chunk & 1] = 0;
        // The last row of a chunk has no later box in it, and `overlap` wrote no word for it.
        if (t < 63 && t < size) {
            u64 row = diagonal[t] = mask[(u64)chunk * top + i];
            if (row) atomicOr(acting + (chunk & 1), 1ull << t);
        }
        __syncthreads();
        u64 lost = gone[chunk];
        for (u64 left = acting[chunk & 1]; left; left &= left - 1) {
            int k = __ffsll(left) - 1;
            lost |= diagonal[k] & ((lost >> k & 1) - 1);
        }
        u64 kept = ~lost & (~0ull >> (64 - size));
        for (u32 word = chunk + 1 + t / 16; word < words; word += blockDim.x / 16) {
            const u64 *rows = mask + (u64)word * top + base;
            u64 bits = 0;
#pragma unroll
            for (u32 k = t % 16; k < 64; k += 16) bits |= rows[k] & (0 - (kept >> k & 1));
            if (bits) atomicOr(gone + word, bits);
        }
        u32 slot = total + __popcll(kept & ((1ull << (t & 63)) - 1));
        if (t < 64 && (kept >> t & 1) && slot < limit) {
            float4 box = boxes[i];
            Row row = {box.x, box.y, box.z, box.w, scores[i], labels[i]};
            result[1 + slot] = row;
        }
        total += __popcll(kept);
    }
    if (t == 0) {
        Row head = {__uint_as_float(*found), 0.f, 0.f, 0.f, 0.f, (int)(total < limit ? total : limit)};
        result[0] = head;
    }
}
HOST_ENTRY_BLOCK(keep)
