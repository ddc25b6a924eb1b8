/* CUDA's keywords for g++, so that lif_cuda.cu runs on the CPU, thread after thread. */
#include <math.h>
#define __CUDACC__
#define __global__
#define __device__
#define __forceinline__ inline
struct Index { unsigned x; };
static Index blockIdx, blockDim, threadIdx;

/* Constants of the compilation that may as well be variables: one library serves all their values. */
extern "C" { int STEPS, KIND, SOFT; }

/* PTX's cvt.f32.f16 and cvt.rn.f16.f32 */
static inline float half_to_float(unsigned short bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * ldexpf(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
}
static inline unsigned short float_to_half(float value) {
    int exponent, sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) return 0x7fff;
    if (fabsf(value) >= 65520.0f) return sign | 0x7c00;
    frexpf(value, &exponent); /* below 2^exponent */
    if (exponent < -13 || !value) exponent = -13;
    return sign | (((exponent + 13) << 10) + (int)rintf(ldexpf(fabsf(value), 11 - exponent)));
}
