/* CUDA's keywords for g++, so that lif_cuda.cu runs on the CPU, thread after thread. */
#include <math.h>
#define __CUDACC__
#define __global__
#define __device__
#define __forceinline__ inline
struct Index { unsigned x; };
static Index blockIdx, blockDim, threadIdx;
