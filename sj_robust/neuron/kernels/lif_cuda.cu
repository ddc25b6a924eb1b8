/* The fused CUDA kernels: one thread per neuron, the loop over time inside. The text of lif.h goes before this file.

   Memory as in lif_cpu.c: a step is a dense block of `size` floats in any order of its dimensions; the threshold of the neuron
   at offset j is threshold[(j / inner) % channels], read here, so that the host never waits for it. Each thread writes its own
   share of d v_th, which the caller adds up: no atomics, no shared memory, the same result every time.
   Compile with --fmad=false: a fused multiply-add in h would flip spikes. */

extern "C" __global__ void lif_forward_kernel(const float *x, const float *threshold, float *spikes, float *potential, long long steps,
                                              long long size, long long x_stride, long long channels, long long inner, float leak,
                                              int soft) {
    long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= size) return;
    float v_threshold = threshold[channels == 1 ? 0 : (j / inner) % channels];
    float v = 0.0f;
    for (long long t = 0; t < steps; t++) {
        float h = lif_charge(x[t * x_stride + j], v, leak);
        if (potential) potential[t * size + j] = h;
        spikes[t * size + j] = h >= v_threshold ? 1.0f : 0.0f;
        v = lif_reset(h, v_threshold, soft);
    }
}

/* slope: σ' of every neuron and step, in place of the surrogate `kind`, or 0. */
extern "C" __global__ void lif_backward_kernel(const float *grad, const float *potential, const float *threshold, const float *slope,
                                               float *dx, float *dthreshold, long long steps, long long size, long long channels,
                                               long long inner, float leak, int soft, int kind, float gamma) {
    long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= size) return;
    float v_threshold = threshold[channels == 1 ? 0 : (j / inner) % channels];
    float carry = 0.0f, total = 0.0f;
    for (long long t = steps - 1; t >= 0; t--) {
        float h = potential[t * size + j];
        float sigma = slope ? slope[t * size + j] : lif_surrogate(kind, gamma, h - v_threshold);
        float d = lif_backward(grad[t * size + j], carry, h, v_threshold, soft, sigma, &total);
        dx[t * size + j] = d;
        carry = d * leak;
    }
    if (dthreshold) dthreshold[j] = -total;
}

/* Adaptive sharpness: advances mean and spread, [T, size] as the potential, and writes σ' to slope. */
extern "C" __global__ void lif_adapt_kernel(const float *potential, const float *threshold, float *mean, float *spread, float *slope,
                                            long long steps, long long size, long long channels, long long inner, float omega,
                                            float update, float relaxation) {
    long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= size) return;
    float v_threshold = threshold[channels == 1 ? 0 : (j / inner) % channels];
    for (long long t = 0; t < steps; t++) {
        long long i = t * size + j;
        slope[i] = lif_adapt(potential[i] - v_threshold, &mean[i], &spread[i], omega, update, relaxation);
    }
}
