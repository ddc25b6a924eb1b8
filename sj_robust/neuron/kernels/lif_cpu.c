/* The fused CPU kernel: all time steps of a block of neurons while the block's state stays in the L1 cache.

   A step of the layer is a dense block of memory of `size` floats in any order of its dimensions; step t of x lies at
   x + t·x_stride (0 repeats one step), of every other array at t·size. The threshold of the neuron at offset j is
   threshold[(j / inner) % channels]. Blocks are fixed, so the results do not depend on the number of threads. */

#include "lif.h"
#include <stdint.h>

#define BLOCK 2048

static void fill_thresholds(float *filled, const float *threshold, int64_t channels, int64_t inner, int64_t start, int64_t n) {
    if (channels == 1) {
        for (int64_t i = 0; i < n; i++) filled[i] = threshold[0];
        return;
    }
    for (int64_t i = 0; i < n; i++) filled[i] = threshold[((start + i) / inner) % channels];
}

LIF_INLINE void forward_block(const float *x, const float *threshold, float *spikes, float *potential, int64_t n, int64_t steps,
                              int64_t x_stride, int64_t size, float leak, int soft, int keep) {
    float v[BLOCK];
    for (int64_t i = 0; i < n; i++) v[i] = 0.0f;
    for (int64_t t = 0; t < steps; t++) {
        const float *restrict x_t = x + t * x_stride;
        float *restrict s_t = spikes + t * size;
        float *restrict h_t = keep ? potential + t * size : 0;
        for (int64_t i = 0; i < n; i++) {
            float h = lif_charge(x_t[i], v[i], leak);
            if (keep) h_t[i] = h;
            s_t[i] = h >= threshold[i] ? 1.0f : 0.0f;
            v[i] = lif_reset(h, threshold[i], soft);
        }
    }
}

void lif_forward_layer(const float *x, const float *threshold, float *spikes, float *potential, int64_t steps, int64_t size,
                 int64_t x_stride, int64_t channels, int64_t inner, float leak, int soft, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK, n = size - start < BLOCK ? size - start : BLOCK;
        float th[BLOCK];
        fill_thresholds(th, threshold, channels, inner, start, n);
        const float *x_b = x + start;
        float *s_b = spikes + start, *h_b = potential ? potential + start : 0;
        /* constant last arguments: one vectorised loop each */
        if (potential && soft) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, leak, 1, 1);
        else if (potential) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, leak, 0, 1);
        else if (soft) forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, leak, 1, 0);
        else forward_block(x_b, th, s_b, h_b, n, steps, x_stride, size, leak, 0, 0);
    }
}

LIF_INLINE void backward_block(const float *grad, const float *potential, const float *threshold, const float *slope, float *dx,
                               float *total, int64_t n, int64_t steps, int64_t size, float leak, float gamma, int soft, int kind) {
    float carry[BLOCK];
    for (int64_t i = 0; i < n; i++) carry[i] = total[i] = 0.0f;
    for (int64_t t = steps - 1; t >= 0; t--) {
        const float *restrict g_t = grad + t * size;
        const float *restrict h_t = potential + t * size;
        const float *restrict slope_t = kind == LIF_GIVEN ? slope + t * size : 0;
        float *restrict dx_t = dx + t * size;
        for (int64_t i = 0; i < n; i++) {
            float sigma = kind == LIF_GIVEN ? slope_t[i] : lif_surrogate(kind, gamma, h_t[i] - threshold[i]);
            float d = lif_backward(g_t[i], carry[i], h_t[i], threshold[i], soft, sigma, &total[i]);
            dx_t[i] = d;
            carry[i] = d * leak;
        }
    }
}

#define BACKWARD(kind)                                                                                                   \
    case kind:                                                                                                           \
        if (soft) backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, leak, gamma, 1, kind);              \
        else backward_block(g_b, h_b, th, slope_b, dx_b, total, n, steps, size, leak, gamma, 0, kind);                   \
        break;

/* slope: σ' of every element and step, in place of the surrogate `kind`, or 0.
   dthreshold: 0, or zeros [blocks, channels]; the caller adds up the blocks in their order. */
void lif_backward_layer(const float *grad, const float *potential, const float *threshold, const float *slope, float *dx,
                        double *dthreshold, int64_t steps, int64_t size, int64_t channels, int64_t inner, float leak, int soft, int kind,
                        float gamma, int threads) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = b * BLOCK, n = size - start < BLOCK ? size - start : BLOCK;
        float th[BLOCK], total[BLOCK];
        fill_thresholds(th, threshold, channels, inner, start, n);
        const float *g_b = grad + start, *h_b = potential + start, *slope_b = slope ? slope + start : 0;
        float *dx_b = dx + start;
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
