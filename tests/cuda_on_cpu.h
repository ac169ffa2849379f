// What the kernels need of CUDA, in C++20: blocks run one after another, the threads of each at once.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // of one block at a time
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __restrict__
#define __syncthreads() meeting->arrive_and_wait()
#define __expf expf
#define __fdividef(a, b) ((a) / (b))

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
struct Place { int x, y, z; };
using std::min;

static thread_local Place threadIdx, blockIdx;
static Place blockDim, gridDim;
static std::unique_ptr<std::barrier<>> meeting;

template <typename Kernel>
void run(const int* blocks, int threads, Kernel kernel) {
    gridDim = {blocks[0], blocks[1], blocks[2]};
    blockDim = {threads, 1, 1};
    for (int number = 0; number < blocks[0] * blocks[1] * blocks[2]; number++) {
        meeting = std::make_unique<std::barrier<>>(threads);
        std::vector<std::thread> team;
        for (int thread = 0; thread < threads; thread++)
            team.emplace_back([=] {
                threadIdx = {thread, 0, 0};
                blockIdx = {number % blocks[0], number / blocks[0] % blocks[1], number / blocks[0] / blocks[1]};
                kernel();
                meeting->arrive_and_drop();
            });
        for (auto& one : team) one.join();
    }
}
