/* The arithmetic of one neuron at one time step, shared by the CPU kernel (C) and the CUDA kernel (C++).

   forward    h = leak·v + x        s = [h − v_th ≥ 0]        v = (1 − s)·h  (hard)   or   h − s·v_th  (soft)
   backward   g = dL/ds from above, c = dL/dv carried back (0 at the end); the reset is not detached:
              ds = g − c·h | g − c·v_th      dx = ds·σ' + c·(1 − s) | ds·σ' + c      c = dx·leak
              d v_th = −Σ_t (ds·σ'  (+ c·s, soft))

   Özdenizci & Legenstein, TMLR 2024, equations 3–6 and appendix A. Products and sums are rounded one by one: compile
   without fused multiply-add, because a last-bit difference in h flips spikes. */

#ifdef __CUDACC__
#define LIF_INLINE __device__ __forceinline__
#else
#define LIF_INLINE static inline __attribute__((always_inline))
#endif

enum { LIF_PCW, LIF_EXP, LIF_EXP_D, LIF_RECT, LIF_STE, LIF_GIVEN }; /* the order of SURROGATE_NAMES; last, σ' from an array */

/* exp(−γ·size) for size ≥ 0, to 1 ulp or so, from operations that a compiler can vectorise: 2^k·exp(r), |r| ≤ ln2/2
   (Cephes expf). Cut off at exp(−87), about the smallest normal number; the bound is no constant, or gcc makes it a branch. */
LIF_INLINE float lif_exp(float gamma, float size) {
#ifdef __CUDACC__
    return expf(-gamma * size);
#else
    float limit = 87.0f / gamma;
    float a = -gamma * (size > limit ? limit : size);
    float n = a * 1.44269504088896341f - 0.5f;
    int k = (int)n; /* towards 0: the nearest integer of a/ln2, for a ≤ 0 */
    n = (float)k;
    float r = a - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int bits; float value; } scale = {(k + 127) << 23};
    return p * scale.value;
#endif
}

/* σ'(u), see sj_robust.neuron.surrogate */
LIF_INLINE float lif_surrogate(int kind, float gamma, float u) {
    float size = u < 0.0f ? -u : u;
    switch (kind) {
    case LIF_PCW: {
        float height = gamma - size;
        return (height > 0.0f ? height : 0.0f) * (1.0f / (gamma * gamma)); /* a division in front of the loop */
    }
    case LIF_EXP: return lif_exp(gamma, size);
    case LIF_EXP_D: return 0.3f * lif_exp(gamma, size);
    case LIF_RECT: return size < 0.5f * gamma ? 1.0f / gamma : 0.0f;
    default: return 1.0f;
    }
}

/* σ'(u) by adaptive sharpness, after the moving averages M and D took in u: sj_robust.neuron.views */
LIF_INLINE float lif_adapt(float u, float *mean, float *spread, float omega, float update, float relaxation) {
    float size = u < 0.0f ? -u : u;
    float m = *mean + update * (size - *mean);
    float off = size - m;
    float d = *spread + update * ((off < 0.0f ? -off : off) - *spread);
    float alpha = omega / (m + relaxation * d + 1e-4f);
    float bell = 1.57079632679489662f * alpha * size;
    *mean = m;
    *spread = d;
    return alpha / (2.0f * (1.0f + bell * bell));
}

LIF_INLINE float lif_charge(float x, float v, float leak) { return leak * v + x; }

LIF_INLINE float lif_reset(float h, float threshold, int soft) {
    float fired = soft ? h - threshold : 0.0f;
    return h >= threshold ? fired : h;
}

/* dx of a step, where σ' is `slope`; adds the step's share of −d v_th to *total */
LIF_INLINE float lif_backward(float grad, float carry, float h, float threshold, int soft, float slope, float *total) {
    float u = h - threshold;
    float direct = slope * (grad - carry * (soft ? threshold : h));
    float kept = (soft || u < 0.0f) ? carry : 0.0f;
    *total += soft ? direct + (u >= 0.0f ? carry : 0.0f) : direct;
    return direct + kept;
}
