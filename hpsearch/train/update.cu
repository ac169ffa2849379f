// One step of K trials' optimizers, SGD or Adam by lane, in one pass over memory; what lane_optimizers.py, which defines
// EACH, says in torch's operations as well. Parameters, gradients and moments (K, size), numbers (K,).
// Blocks: (size / (EACH * threads), K); a thread's numbers are `blockDim.x` apart.

extern "C" __global__ void update(
    float* __restrict__ parameters, const float* __restrict__ gradients, float* __restrict__ first,
    float* __restrict__ second, const float* __restrict__ rate, const float* __restrict__ momentum,
    const float* __restrict__ penalty, const float* __restrict__ divisor, const float* __restrict__ keep,
    const float* __restrict__ root, const bool* __restrict__ adaptive, int size, float second_beta, float rest,
    float epsilon) {
    const int lane = blockIdx.y, start = blockIdx.x * blockDim.x * EACH + threadIdx.x;
    const long long row = (long long)lane * size;
    const bool adapts = adaptive[lane];
    float own[EACH], gradient[EACH], one[EACH], other[EACH];
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int at = start + each * blockDim.x;
        if (at >= size) continue;
        own[each] = parameters[row + at];
        gradient[each] = gradients[row + at];
        one[each] = first[row + at];
        if (adapts) other[each] = second[row + at];
    }
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int at = start + each * blockDim.x;
        if (at >= size) continue;
        const float given = gradient[each] / divisor[lane] + own[each] * penalty[lane];
        float moved = one[each] * momentum[lane] + given;
        float change = moved;
        if (adapts) {
            const float square = other[each] * second_beta + rest * given * given;
            second[row + at] = square;
            moved = one[each] + (1 - momentum[lane]) * (given - one[each]);
            change = moved / (sqrtf(square) / root[lane] + epsilon);
        }
        first[row + at] = moved;
        parameters[row + at] = own[each] * keep[lane] - rate[lane] * change;
    }
}
