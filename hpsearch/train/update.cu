// One step of K trials' optimizers in one pass over memory: parameters, gradients and buffers (K, SIZE), a row for each
// lane; numbers (K,). What lane_optimizers.py, which defines EACH, says in torch's operations as well.
// Blocks: (SIZE / (EACH * threads), K).

#define FOR_EACH                                                                             \
    const int lane = blockIdx.y, first = blockIdx.x * blockDim.x * EACH + threadIdx.x;       \
    _Pragma("unroll") for (int at = first; at < first + EACH * blockDim.x; at += blockDim.x) \
        if (const long i = (long)lane * size + at; at < size)

extern "C" __global__ void sgd(
    float* __restrict__ parameters, const float* __restrict__ gradients, float* __restrict__ momentum, const float* __restrict__ rate, const float* __restrict__ factor,
    const float* __restrict__ weight_decay, const float* __restrict__ divisor, int size) {
    FOR_EACH {
        const float gradient = gradients[i] / divisor[lane] + parameters[i] * weight_decay[lane];
        const float moved = momentum[i] * factor[lane] + gradient;
        momentum[i] = moved;
        parameters[i] -= rate[lane] * moved;
    }
}

// `keep` is what a step leaves of a parameter (decoupled weight decay), `rate` is corrected for the bias of `mean`, and
// `root` is what that of `square` needs.
extern "C" __global__ void adam(
    float* __restrict__ parameters, const float* __restrict__ gradients, float* __restrict__ mean, float* __restrict__ square, const float* __restrict__ rate, const float* __restrict__ beta,
    const float* __restrict__ weight_decay, const float* __restrict__ divisor, const float* __restrict__ keep, const float* __restrict__ root, int size, float second_beta, float rest,
    float epsilon) {
    FOR_EACH {
        const float gradient = gradients[i] / divisor[lane] + parameters[i] * weight_decay[lane];
        const float first = mean[i] + (1 - beta[lane]) * (gradient - mean[i]);
        const float second = square[i] * second_beta + rest * gradient * gradient;
        mean[i] = first;
        square[i] = second;
        parameters[i] = parameters[i] * keep[lane] - rate[lane] * first / (sqrtf(second) / root[lane] + epsilon);
    }
}
