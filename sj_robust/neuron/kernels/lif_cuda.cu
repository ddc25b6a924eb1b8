/* The fused CUDA kernels: one thread for WIDTH neighbouring neurons, the loop over time inside. The text of lif.h goes before
   this file. What does not change within a network is a constant of the compilation:

     ELEMENT     float, bf16 or fp16: what x, the spikes and their gradients are in memory; all else is float, and so is every sum
     STEPS       how many steps, up to a bound: the loop over time is unrolled, and its potentials stay in registers; else 0
     WIDTH       1, 2 or 4 neurons, read and written in one access: divides size and x_stride, and every pointer is aligned to it
     KIND, SOFT  surrogate and reset, as in lif.h

   Memory as in lif_cpu.c: a step is a dense block of `size` elements in any order of its dimensions, step t of x lies at
   x + t·x_stride; the threshold of the neuron at offset j is threshold[(j / inner) % channels], read here, so that the host never
   waits for it. Each thread writes its own share of d v_th, which the caller adds up: no atomics, no shared memory, the same
   result every time. Compile with --fmad=false: a fused multiply-add in h would flip spikes. */

#define EACH(i) _Pragma("unroll") for (int i = 0; i < WIDTH; i++)
#define TIMES (STEPS ? STEPS : steps)

/* The 16-bit types, without CUDA's headers: NVRTC need not find any. */
struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };
union word { unsigned bits; float value; };

#ifdef __CUDA_ARCH__ /* else whoever includes this brings the two */
LIF_INLINE float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
LIF_INLINE unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

LIF_INLINE float widened(float value) { return value; }
LIF_INLINE float widened(fp16 element) { return half_to_float(element.bits); }
LIF_INLINE float widened(bf16 element) {
    word all = {(unsigned)element.bits << 16};
    return all.value;
}

LIF_INLINE void narrow(float value, float &element) { element = value; }
LIF_INLINE void narrow(float value, fp16 &element) { element.bits = float_to_half(value); }
LIF_INLINE void narrow(float value, bf16 &element) { /* to nearest even; the sum would carry a NaN over into 0 */
    word all;
    all.value = value;
    element.bits = value != value ? 0x7fff : (all.bits + 0x7fff + (all.bits >> 16 & 1)) >> 16;
}

template <class E> struct alignas(sizeof(E) * WIDTH) Pack { E of[WIDTH]; };

template <class E> LIF_INLINE void load(float *values, const E *from) {
    Pack<E> pack = *(const Pack<E> *)from;
    EACH(i) values[i] = widened(pack.of[i]);
}

template <class E> LIF_INLINE void store(E *to, const float *values) {
    Pack<E> pack;
    EACH(i) narrow(values[i], pack.of[i]);
    *(Pack<E> *)to = pack;
}

LIF_INLINE long long first_neuron() { return WIDTH * ((long long)blockIdx.x * blockDim.x + threadIdx.x); }

LIF_INLINE void load_thresholds(float *values, const float *threshold, long long j, long long channels, long long inner) {
    if (channels == 1) {
        EACH(i) values[i] = threshold[0];
        return;
    }
    long long row = j / inner, channel = row % channels, left = inner - (j - row * inner);
    EACH(i) {
        values[i] = threshold[channel];
        if (--left == 0) {
            left = inner;
            channel = channel + 1 == channels ? 0 : channel + 1;
        }
    }
}

/* One share where all neurons of the thread, and so of every thread, have one threshold; else one for each. */
LIF_INLINE void store_shares(float *shares, const float *total, long long j, long long channels, long long inner) {
    if (channels == 1 || inner % WIDTH == 0) {
        float sum = 0.0f;
        EACH(i) sum += total[i];
        shares[j / WIDTH] = -sum;
    } else {
        EACH(i) shares[j + i] = -total[i];
    }
}

/* A step of the thread's neurons; h: their inputs, which become their potentials. */
LIF_INLINE void step(float *h, float *v, float *spikes, const float *v_threshold, float leak) {
    EACH(i) {
        h[i] = lif_charge(h[i], v[i], leak);
        spikes[i] = h[i] >= v_threshold[i] ? 1.0f : 0.0f;
        v[i] = lif_reset(h[i], v_threshold[i], SOFT);
    }
}

LIF_INLINE void step_back(const ELEMENT *grad, const float *slope, ELEMENT *dx, const float *h, const float *v_threshold, float *carry,
                          float *total, float leak, float gamma) {
    float d[WIDTH], sigma[WIDTH];
    load(d, grad);
    if (KIND == LIF_GIVEN) load(sigma, slope);
    EACH(i) {
        if (KIND != LIF_GIVEN) sigma[i] = lif_surrogate(KIND, gamma, h[i] - v_threshold[i]);
        d[i] = lif_backward(d[i], carry[i], h[i], v_threshold[i], SOFT, sigma[i], &total[i]);
        carry[i] = d[i] * leak;
    }
    store(dx, d);
}

/* potential: [T, size], or 0 */
extern "C" __global__ void lif_forward_kernel(const ELEMENT *__restrict__ x, const float *__restrict__ threshold,
                                              ELEMENT *__restrict__ spikes, float *__restrict__ potential, long long steps, long long size,
                                              long long x_stride, long long channels, long long inner, float leak) {
    long long j = first_neuron();
    if (j >= size) return;
    float v_threshold[WIDTH], v[WIDTH] = {};
    load_thresholds(v_threshold, threshold, j, channels, inner);
#pragma unroll
    for (long long t = 0; t < TIMES; t++) {
        float h[WIDTH], fired[WIDTH];
        load(h, x + t * x_stride + j);
        step(h, v, fired, v_threshold, leak);
        store(spikes + t * size + j, fired);
        if (potential) store(potential + t * size + j, h);
    }
}

/* slope: σ' of every neuron and step (KIND LIF_GIVEN), or 0; shares: or 0 */
extern "C" __global__ void lif_backward_kernel(const ELEMENT *__restrict__ grad, const float *__restrict__ potential,
                                               const float *__restrict__ threshold, const float *__restrict__ slope,
                                               ELEMENT *__restrict__ dx, float *__restrict__ shares, long long steps, long long size,
                                               long long h_stride, long long channels, long long inner, float leak, float gamma) {
    long long j = first_neuron();
    if (j >= size) return;
    float v_threshold[WIDTH], carry[WIDTH] = {}, total[WIDTH] = {};
    load_thresholds(v_threshold, threshold, j, channels, inner);
#pragma unroll
    for (long long t = TIMES - 1; t >= 0; t--) {
        float h[WIDTH];
        load(h, potential + t * h_stride + j);
        step_back(grad + t * size + j, slope + t * size + j, dx + t * size + j, h, v_threshold, carry, total, leak, gamma);
    }
    if (shares) store_shares(shares, total, j, channels, inner);
}

/* The same from x: the potentials are computed again, as in the forward pass. Needs STEPS. */
extern "C" __global__ void lif_backward_from_input_kernel(const ELEMENT *__restrict__ grad, const ELEMENT *__restrict__ x,
                                                          const float *__restrict__ threshold, ELEMENT *__restrict__ dx,
                                                          float *__restrict__ shares, long long steps, long long size,
                                                          long long x_stride, long long channels, long long inner, float leak,
                                                          float gamma) {
    long long j = first_neuron();
    if (j >= size) return;
    float v_threshold[WIDTH], v[WIDTH] = {}, carry[WIDTH] = {}, total[WIDTH] = {}, h[STEPS ? STEPS : 1][WIDTH];
    load_thresholds(v_threshold, threshold, j, channels, inner);
#pragma unroll
    for (int t = 0; t < STEPS; t++) {
        float fired[WIDTH];
        load(h[t], x + t * x_stride + j);
        step(h[t], v, fired, v_threshold, leak);
    }
#pragma unroll
    for (int t = STEPS - 1; t >= 0; t--)
        step_back(grad + t * size + j, 0, dx + t * size + j, h[t], v_threshold, carry, total, leak, gamma);
    if (shares) store_shares(shares, total, j, channels, inner);
}

/* Adaptive sharpness: advances mean and spread, [T, size] as the potential, and writes σ' to slope. */
extern "C" __global__ void lif_adapt_kernel(const float *__restrict__ potential, const float *__restrict__ threshold,
                                            float *__restrict__ mean, float *__restrict__ spread, float *__restrict__ slope,
                                            long long steps, long long size, long long h_stride, long long channels, long long inner,
                                            float omega, float update, float relaxation) {
    long long j = first_neuron();
    if (j >= size) return;
    float v_threshold[WIDTH];
    load_thresholds(v_threshold, threshold, j, channels, inner);
#pragma unroll
    for (long long t = 0; t < TIMES; t++) {
        float h[WIDTH], m[WIDTH], d[WIDTH];
        load(h, potential + t * h_stride + j);
        load(m, mean + t * size + j);
        load(d, spread + t * size + j);
        EACH(i) h[i] = lif_adapt(h[i] - v_threshold[i], &m[i], &d[i], omega, update, relaxation);
        store(mean + t * size + j, m);
        store(spread + t * size + j, d);
        store(slope + t * size + j, h);
    }
}
