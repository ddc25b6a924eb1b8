/* The launch: every thread of every block, one after the other. */
#define EACH_THREAD                                                                                                      \
    blockDim.x = 256;                                                                                                    \
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)                                                              \
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)

extern "C" void launch_lif_forward_kernel(unsigned blocks, const float *x, const float *threshold, float *spikes, float *potential,
                                          long long steps, long long size, long long x_stride, long long channels, long long inner,
                                          float leak, int soft) {
    EACH_THREAD lif_forward_kernel(x, threshold, spikes, potential, steps, size, x_stride, channels, inner, leak, soft);
}

extern "C" void launch_lif_backward_kernel(unsigned blocks, const float *grad, const float *potential, const float *threshold, const float *slope,
                                           float *dx, float *dthreshold, long long steps, long long size, long long channels,
                                           long long inner, float leak, int soft, int kind, float gamma) {
    EACH_THREAD lif_backward_kernel(grad, potential, threshold, slope, dx, dthreshold, steps, size, channels, inner, leak, soft, kind, gamma);
}

extern "C" void launch_lif_adapt_kernel(unsigned blocks, const float *potential, const float *threshold, float *mean, float *spread,
                                        float *slope, long long steps, long long size, long long channels, long long inner, float omega,
                                        float update, float relaxation) {
    EACH_THREAD lif_adapt_kernel(potential, threshold, mean, spread, slope, steps, size, channels, inner, omega, update, relaxation);
}
