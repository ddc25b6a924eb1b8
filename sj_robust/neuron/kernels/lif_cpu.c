/* The fused CPU kernel: all time steps of a block of neurons while the block's state stays in the cache.

   x, the spikes and their gradients are float or, where `half` says so, the upper half of one (bfloat16); all else is float, and
   so is every sum. A step of the layer is a dense block of memory of `size` elements in any order of its dimensions; step t of x
   lies at x + t·x_stride (0 repeats one step), of every other array at t·size. The threshold of the neuron at offset j is
   threshold[(j / inner) % channels]. Blocks are fixed, so the results do not depend on the number of threads. MOST_STEPS: how many
   potentials of a neuron are computed again at once, given by whoever compiles this. */

#include "lif.h"
#include <stdint.h>

#define BLOCK 512

LIF_INLINE float load(const void *from, int64_t i, int half) {
    if (!half) return ((const float *)from)[i];
    union { uint32_t bits; float value; } all = {(uint32_t)((const uint16_t *)from)[i] << 16};
    return all.value;
}

LIF_INLINE void store(void *to, int64_t i, float value, int half) { /* to nearest even; the sum would carry a NaN over into 0 */
    union { float value; uint32_t bits; } all = {value};
    if (!half) ((float *)to)[i] = value;
    else ((uint16_t *)to)[i] = (uint16_t)(value != value ? 0x7fff : (all.bits + 0x7fff + (all.bits >> 16 & 1)) >> 16);
}

LIF_INLINE void store_spike(void *to, int64_t i, int fired, int half) {
    if (half) ((uint16_t *)to)[i] = fired ? 0x3f80 : 0;
    else ((float *)to)[i] = fired ? 1.0f : 0.0f;
}

LIF_INLINE void *at(const void *array, int64_t i, int half) { return (char *)array + i * (half ? 2 : 4); }

static void fill_thresholds(float *filled, const float *threshold, int64_t channels, int64_t inner, int64_t start, int64_t n) {
    if (channels == 1) {
        for (int64_t i = 0; i < n; i++) filled[i] = threshold[0];
        return;
    }
    for (int64_t i = 0; i < n; i++) filled[i] = threshold[((start + i) / inner) % channels];
}

/* fire, keep: whether spikes and potentials (at t·h_stride) are wanted */
LIF_INLINE void forward_block(const void *x, const float *threshold, void *spikes, float *potential, int64_t n, int64_t steps,
                              int64_t x_stride, int64_t size, int64_t h_stride, float leak, int soft, int fire, int keep, int half) {
    float v[BLOCK];
    for (int64_t i = 0; i < n; i++) v[i] = 0.0f;
    for (int64_t t = 0; t < steps; t++) {
        const void *restrict x_t = at(x, t * x_stride, half);
        void *restrict s_t = fire ? at(spikes, t * size, half) : 0;
        float *restrict h_t = keep ? potential + t * h_stride : 0;
        for (int64_t i = 0; i < n; i++) {
            float h = lif_charge(load(x_t, i, half), v[i], leak);
            if (keep) h_t[i] = h;
            if (fire) store_spike(s_t, i, h >= threshold[i], half);
            v[i] = lif_reset(h, threshold[i], soft);
        }
    }
}

/* constant last arguments: one vectorised loop each */
#define FORWARD(fire, keep)                                                                                              \
    if (half && soft) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, h_stride, leak, 1, fire, keep, 1);      \
    else if (half) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, h_stride, leak, 0, fire, keep, 1);         \
    else if (soft) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, h_stride, leak, 1, fire, keep, 0);         \
    else forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, h_stride, leak, 0, fire, keep, 0);

/* potential: or 0 */
void lif_forward_layer(const void *x, const float *threshold, void *spikes, float *potential, int64_t steps, int64_t size,
                       int64_t x_stride, int64_t channels, int64_t inner, float leak, int soft, int half, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK, h_stride = size;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK, n = size - start < BLOCK ? size - start : BLOCK;
        float th[BLOCK];
        fill_thresholds(th, threshold, channels, inner, start, n);
        const void *x_b = at(x, start, half);
        void *s_b = at(spikes, start, half);
        float *h_b = potential ? potential + start : 0;
        if (potential) {
            FORWARD(1, 1)
        } else {
            FORWARD(1, 0)
        }
    }
}

LIF_INLINE void backward_block(const void *grad, const float *potential, const float *threshold, const float *slope, void *dx,
                               float *total, int64_t n, int64_t steps, int64_t size, int64_t h_stride, float leak, float gamma, int soft,
                               int kind, int half) {
    float carry[BLOCK];
    for (int64_t i = 0; i < n; i++) carry[i] = total[i] = 0.0f;
    for (int64_t t = steps - 1; t >= 0; t--) {
        const void *restrict g_t = at(grad, t * size, half);
        const float *restrict h_t = potential + t * h_stride;
        const float *restrict slope_t = kind == LIF_GIVEN ? slope + t * size : 0;
        void *restrict dx_t = at(dx, t * size, half);
        for (int64_t i = 0; i < n; i++) {
            float sigma = kind == LIF_GIVEN ? slope_t[i] : lif_surrogate(kind, gamma, h_t[i] - threshold[i]);
            float d = lif_backward(load(g_t, i, half), carry[i], h_t[i], threshold[i], soft, sigma, &total[i]);
            store(dx_t, i, d, half);
            carry[i] = d * leak;
        }
    }
}

#define BACKWARD(kind)                                                                                                        \
    case kind:                                                                                                                \
        if (half && soft) backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, h_stride, leak, gamma, 1, kind, 1); \
        else if (half) backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, h_stride, leak, gamma, 0, kind, 1); \
        else if (soft) backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, h_stride, leak, gamma, 1, kind, 0); \
        else backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, h_stride, leak, gamma, 0, kind, 0);           \
        break;

/* potential: [T, size], or 0: computed again from x, up to MOST_STEPS of them; else x is 0.
   slope: σ' of every element and step, in place of the surrogate `kind`, or 0.
   dthreshold: 0, or zeros [blocks, channels]; the caller adds up the blocks in their order. */
void lif_backward_layer(const void *grad, const float *potential, const void *x, const float *threshold, const float *slope, void *dx,
                        double *dthreshold, int64_t steps, int64_t size, int64_t x_stride, int64_t channels, int64_t inner, float leak,
                        int soft, int kind, float gamma, int half, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK, h_stride = potential ? size : BLOCK;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK, n = size - start < BLOCK ? size - start : BLOCK;
        float th[BLOCK], total[BLOCK], again[MOST_STEPS * BLOCK], *h_b = potential ? (float *)potential + start : again;
        fill_thresholds(th, threshold, channels, inner, start, n);
        const void *g_b = at(grad, start, half);
        const float *slope_b = slope ? slope + start : 0;
        void *dx_b = at(dx, start, half);
        if (!potential) {
            const void *x_b = at(x, start, half);
            void *s_b = 0;
            FORWARD(0, 1)
        }
        switch (slope ? LIF_GIVEN : kind) {
            BACKWARD(LIF_PCW)
            BACKWARD(LIF_EXP)
            BACKWARD(LIF_EXP_D)
            BACKWARD(LIF_RECT)
            BACKWARD(LIF_STE)
            BACKWARD(LIF_GIVEN)
        }
        if (!dthreshold) continue;
        double *sums = dthreshold + b * channels;
        if (channels == 1) {
            double lanes[8] = {0}; /* eight running sums, so that the loop vectorises without reordering */
            for (int64_t i = 0; i < n; i++) lanes[i & 7] += total[i];
            for (int lane = 0; lane < 8; lane++) sums[0] -= lanes[lane];
        } else {
            for (int64_t i = 0; i < n; i++) sums[((start + i) / inner) % channels] -= total[i];
        }
    }
}

/* Adaptive sharpness of a layer: advances mean and spread, [T, size] as the potential, and writes σ' to slope. */
void lif_adapt_layer(const float *potential, const float *threshold, float *mean, float *spread, float *slope, int64_t steps, int64_t size,
                     int64_t channels, int64_t inner, float omega, float update, float relaxation, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK, n = size - start < BLOCK ? size - start : BLOCK;
        float th[BLOCK];
        fill_thresholds(th, threshold, channels, inner, start, n);
        for (int64_t t = 0; t < steps; t++) {
            const float *restrict h_t = potential + t * size + start;
            float *restrict m_t = mean + t * size + start, *restrict d_t = spread + t * size + start;
            float *restrict slope_t = slope + t * size + start;
            for (int64_t i = 0; i < n; i++) slope_t[i] = lif_adapt(h_t[i] - th[i], &m_t[i], &d_t[i], omega, update, relaxation);
        }
    }
}

int64_t lif_blocks(int64_t size) { return (size + BLOCK - 1) / BLOCK; }
