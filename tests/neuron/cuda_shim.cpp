/* The launch: every thread of every block, one after the other. */
#define EACH_THREAD                                                                                                      \
    blockDim.x = 256;                                                                                                    \
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)                                                              \
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)

#define SHAPE long long steps, long long size, long long stride, long long channels, long long inner

extern "C" void launch_lif_forward_kernel(unsigned blocks, const ELEMENT *x, const float *threshold, ELEMENT *spikes, float *potential,
                                          SHAPE, float leak) {
    EACH_THREAD lif_forward_kernel(x, threshold, spikes, potential, steps, size, stride, channels, inner, leak);
}

extern "C" void launch_lif_backward_kernel(unsigned blocks, const ELEMENT *grad, const float *potential, const float *threshold,
                                           const float *slope, ELEMENT *dx, float *shares, SHAPE, float leak, float gamma) {
    EACH_THREAD lif_backward_kernel(grad, potential, threshold, slope, dx, shares, steps, size, stride, channels, inner, leak, gamma);
}

extern "C" void launch_lif_backward_from_input_kernel(unsigned blocks, const ELEMENT *grad, const ELEMENT *x, const float *threshold,
                                                      ELEMENT *dx, float *shares, SHAPE, float leak, float gamma) {
    EACH_THREAD lif_backward_from_input_kernel(grad, x, threshold, dx, shares, steps, size, stride, channels, inner, leak, gamma);
}

extern "C" void launch_lif_adapt_kernel(unsigned blocks, const float *potential, const float *threshold, float *mean, float *spread,
                                        float *slope, SHAPE, float omega, float update, float relaxation) {
    EACH_THREAD
    lif_adapt_kernel(potential, threshold, mean, spread, slope, steps, size, stride, channels, inner, omega, update, relaxation);
}
