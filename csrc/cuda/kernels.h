#pragma once
#include <string>
#include <vector>

#include "problem.h"

namespace rk::cuda {

// The device's ordinal and one of its cudaStream_t.
struct Queue {
  int device;
  void* stream;
};

// All of these queue work and return: they neither wait nor allocate. Pointers are to memory of the device,
// images are channels last, weights have the images' dtype and any strides.

// Why grouped_conv2d_fwd and grouped_conv2d_stats do not take p; empty where they do.
std::vector<std::string> grouped_conv2d_reasons(const ConvProblem& p);

// Bytes that grouped_conv2d_fwd and grouped_conv2d_stats want at `workspace`, aligned to 256.
int64_t grouped_conv2d_workspace(const ConvProblem& p);

void grouped_conv2d_fwd(const ConvProblem& p, const void* x, const void* w, void* y, const Epilogue& epilogue,
                        void* workspace, const Queue& queue);

// z = conv(x, w) and, of what is stored of it, the statistics.
void grouped_conv2d_stats(const ConvProblem& p, const void* x, const void* w, void* z,
                          const BatchStats& stats, void* workspace, const Queue& queue);

// Why grouped_conv2d_dgrad and grouped_conv2d_wgrad do not take p; empty where they do.
std::vector<std::string> grouped_conv2d_backward_reasons(const ConvProblem& p);

// Bytes that each wants at `workspace`, aligned to 256.
int64_t grouped_conv2d_dgrad_workspace(const ConvProblem& p);
int64_t grouped_conv2d_wgrad_workspace(const ConvProblem& p);

// dx for dy, the gradient of the convolution's output or, in 16 bits and where bn.z is not null, of what
// follows it: then the output's own gradient goes to dz, if that is not null.
void grouped_conv2d_dgrad(const ConvProblem& p, const void* dy, const void* w, void* dx, const BnBackward& bn,
                          void* dz, void* workspace, const Queue& queue);

// dw, with the strides of p's weights, for dz, the gradient of the convolution's output.
void grouped_conv2d_wgrad(const ConvProblem& p, const void* x, const void* dz, void* dw, void* workspace,
                          const Queue& queue);

// Bytes that bn_stats wants at `workspace`, aligned to 256.
int64_t bn_stats_workspace(const ImageProblem& p);

void bn_stats(const ImageProblem& p, const void* z, const BatchStats& stats, void* workspace,
              const Queue& queue);

// residual may be null.
void affine_act(const ImageProblem& p, const void* z, const float* scale, const float* shift,
                const void* residual, void* y, Activation activation, const Queue& queue);

// Of the backward passes images and vectors per channel are at multiples of 16 bytes. y may be null.

// Bytes that bn_act_reduce wants at `workspace`, aligned to 256.
int64_t bn_act_reduce_workspace(const ImageProblem& p);

void bn_act_reduce(const ImageProblem& p, const BnReduce& reduce, const BnGradients& gradients,
                   void* workspace, const Queue& queue);

// dz and dresidual, the masked gradient g, may be null; y is that of BnReduce.
void affine_act_backward(const ImageProblem& p, const void* dy, const BnBackward& bn, const void* y, void* dz,
                         void* dresidual, const Queue& queue);

}  // namespace rk::cuda
