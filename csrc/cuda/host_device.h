#pragma once

// Of plain functions that kernels call too; sources without CUDA compile them as they are.
#ifdef __CUDACC__
#define RK_HOST_DEVICE __host__ __device__
#else
#define RK_HOST_DEVICE
#endif
