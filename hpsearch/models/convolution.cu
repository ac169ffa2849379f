// Convolution (5 x 5, no padding), tanh and the mean of each 2 x 2, for many lanes: forward, and both gradients.
//
// Every lane has weights of its own; with SHARED_IMAGES all see the same images. Axes: K lanes, B images, CHANNELS in,
// OUTPUTS out, ROWS x COLUMNS pixels; MAP_ROWS x MAP_COLUMNS after the convolution, both even. All float32, in rows.
// A block works for one lane. Direct convolution: what a thread multiplies is in its registers, so that the loads are
// a small part of its instructions. Sums have the same order in every run.
//
// Compiled by lane_convolution.py, which defines the names in capitals that are not defined here.

#define KERNEL 5
#define TAPS (KERNEL * KERNEL)
#define TAPS_ALIGNED 28  // a multiple of 4: they are read as float4
#define WINDOW (KERNEL + 1)  // what the four places of a square see
#define MAP_ROWS (ROWS - KERNEL + 1)
#define MAP_COLUMNS (COLUMNS - KERNEL + 1)
#define POOLED_COLUMNS (MAP_COLUMNS / 2)
#define SQUARES (MAP_ROWS / 2 * POOLED_COLUMNS)
#define PIXELS (ROWS * COLUMNS)
#define PLACES (MAP_ROWS * MAP_COLUMNS)

// tanh to an absolute error of 2e-7, as the CPU's layer: 2 sigmoid(2 x) - 1.
__device__ inline float squash(float x) { return 1 - __fdividef(2, __expf(2 * x) + 1); }

// The 6 x 6 numbers from `corner` on, whose address is a multiple of 8 bytes.
__device__ inline void look(float window[WINDOW][WINDOW], const float* corner, int stride) {
#pragma unroll
    for (int i = 0; i < WINDOW; i++) {
#pragma unroll
        for (int j = 0; j < WINDOW; j += 2) {
            float2 two = *(const float2*)(corner + i * stride + j);
            window[i][j] = two.x;
            window[i][j + 1] = two.y;
        }
    }
}

__device__ inline void read_taps(float taps[TAPS_ALIGNED], const float* from) {
#pragma unroll
    for (int i = 0; i < TAPS_ALIGNED; i += 4) {
        float4 four = *(const float4*)(from + i);
        taps[i] = four.x;
        taps[i + 1] = four.y;
        taps[i + 2] = four.z;
        taps[i + 3] = four.w;
    }
}

// Adds to the four places of a square what their 5 x 5 numbers in the window give.
__device__ inline void convolve(float sums[4], const float taps[TAPS_ALIGNED], const float window[WINDOW][WINDOW]) {
#pragma unroll
    for (int i = 0; i < KERNEL; i++)
#pragma unroll
        for (int j = 0; j < KERNEL; j++)
#pragma unroll
            for (int place = 0; place < 4; place++)
                sums[place] = fmaf(taps[i * KERNEL + j], window[i + place / 2][j + place % 2], sums[place]);
}

// images (K or 1, B, CHANNELS, ROWS, COLUMNS), weight (K, OUTPUTS, CHANNELS, 5, 5), bias (K, OUTPUTS)
// -> squashed (K, B, OUTPUTS, MAP_ROWS, MAP_COLUMNS) unless it is null, pooled (K, B, OUTPUTS, half of both).
// Blocks: (B / FORWARD_SLOTS, K) of FORWARD_GROUPS * FORWARD_SLOTS * SQUARES threads: each has a square of an image, in
// the maps of one group of outputs.
#define GROUP (OUTPUTS / FORWARD_GROUPS)
extern "C" __global__ void __launch_bounds__(FORWARD_GROUPS* FORWARD_SLOTS* SQUARES) forward(
    const float* __restrict__ images, const float* __restrict__ weight, const float* __restrict__ bias,
    float* __restrict__ squashed, float* __restrict__ pooled, int num_images) {
    __shared__ __align__(16) float pixels[FORWARD_SLOTS * CHANNELS * PIXELS];
    __shared__ __align__(16) float taps[OUTPUTS * CHANNELS * TAPS_ALIGNED];
    const int thread = threadIdx.x, lane = blockIdx.y, first = blockIdx.x * FORWARD_SLOTS;
    const int first_output = thread / (FORWARD_SLOTS * SQUARES) * GROUP;
    const int slot = thread / SQUARES % FORWARD_SLOTS, square = thread % SQUARES;
    const int y = square / POOLED_COLUMNS * 2, x = square % POOLED_COLUMNS * 2;

    for (int at = thread; at < OUTPUTS * CHANNELS * TAPS_ALIGNED; at += blockDim.x) {
        int tap = at % TAPS_ALIGNED, filter = lane * OUTPUTS * CHANNELS + at / TAPS_ALIGNED;
        taps[at] = tap < TAPS ? weight[filter * TAPS + tap] : 0;
    }
    const long long start = (SHARED_IMAGES ? 0 : (long long)lane * num_images) + first;
    const float2* source = (const float2*)(images + start * CHANNELS * PIXELS);
    const int present = min(FORWARD_SLOTS, num_images - first) * CHANNELS * PIXELS / 2;
    for (int at = thread; at < FORWARD_SLOTS * CHANNELS * PIXELS / 2; at += blockDim.x)
        ((float2*)pixels)[at] = at < present ? source[at] : make_float2(0, 0);

    float sums[GROUP][4];
#pragma unroll
    for (int at = 0; at < GROUP * 4; at++) sums[at / 4][at % 4] = bias[lane * OUTPUTS + first_output + at / 4];
    __syncthreads();
#pragma unroll 1
    for (int channel = 0; channel < CHANNELS; channel++) {
        float window[WINDOW][WINDOW];
        look(window, pixels + (slot * CHANNELS + channel) * PIXELS + y * COLUMNS + x, COLUMNS);
#pragma unroll
        for (int output = 0; output < GROUP; output++) {
            float own[TAPS_ALIGNED];
            read_taps(own, taps + ((first_output + output) * CHANNELS + channel) * TAPS_ALIGNED);
            convolve(sums[output], own, window);
        }
    }
    if (first + slot >= num_images) return;
    const long long map = ((long long)lane * num_images + first + slot) * OUTPUTS + first_output;
#pragma unroll
    for (int output = 0; output < GROUP; output++) {
        float value[4];
#pragma unroll
        for (int place = 0; place < 4; place++) value[place] = squash(sums[output][place]);
        if (squashed) {
            float* corner = squashed + (map + output) * PLACES + y * MAP_COLUMNS + x;
            *(float2*)corner = make_float2(value[0], value[1]);
            *(float2*)(corner + MAP_COLUMNS) = make_float2(value[2], value[3]);
        }
        pooled[(map + output) * SQUARES + square] = (value[0] + value[1] + (value[2] + value[3])) * 0.25f;
    }
}

// The gradient before tanh, of the four places of a square: a quarter of that of the mean, times tanh'.
__device__ inline void before_tanh(float found[4], float gradient, const float* corner) {
    float2 above = *(const float2*)corner, below = *(const float2*)(corner + MAP_COLUMNS);
    float quarter = gradient * 0.25f;
    found[0] = quarter * (1 - above.x * above.x);
    found[1] = quarter * (1 - above.y * above.y);
    found[2] = quarter * (1 - below.x * below.x);
    found[3] = quarter * (1 - below.y * below.y);
}

// gradient (K, B, OUTPUTS, MAP_ROWS / 2, MAP_COLUMNS / 2) of what `forward` pooled
// -> partial (parts, K, OUTPUTS * CHANNELS * 25 + OUTPUTS), of weight and bias, each the sum over images_of_a_part.
// Blocks: (parts, K, tiles of TILE_OUTPUTS x TILE_CHANNELS) of five warps, one for each row of the kernel. A warp's
// threads have one row each of the maps of WEIGHT_SLOTS images, and all the block's filters.
#define WEIGHT_SLOTS (32 / MAP_ROWS)
#define STEP (MAP_COLUMNS % 4 ? 2 : 4)
#define MAP_STRIDE (MAP_COLUMNS + 1)  // so that the rows that a warp reads at once begin in different banks
#define IMAGE_STRIDE (COLUMNS + 1)
#define FOUND (TILE_OUTPUTS * TILE_CHANNELS * KERNEL)
#define AT_ONCE 10  // sums that a warp adds up at once
#define WEIGHT_BLOCKS 4  // at least at once on a multiprocessor, so that some compute while others load
extern "C" __global__ void __launch_bounds__(32 * KERNEL, WEIGHT_BLOCKS) weight_gradient(
    const float* __restrict__ images, const float* __restrict__ gradient, const float* __restrict__ squashed,
    float* __restrict__ partial, int num_images, int images_of_a_part) {
    const int MAPS = WEIGHT_SLOTS * TILE_OUTPUTS * MAP_ROWS * MAP_STRIDE, ADDED = KERNEL * AT_ONCE * 33;
    __shared__ float maps[MAPS > ADDED ? MAPS : ADDED];
    __shared__ float pixels[WEIGHT_SLOTS * TILE_CHANNELS * ROWS * IMAGE_STRIDE];
    const int thread = threadIdx.x, i = thread / 32, slot = thread % 32 / MAP_ROWS, y = thread % 32 % MAP_ROWS;
    const int part = blockIdx.x, lane = blockIdx.y, num_lanes = gridDim.y;
    const int first_output = blockIdx.z / (CHANNELS / TILE_CHANNELS) * TILE_OUTPUTS;
    const int first_channel = blockIdx.z % (CHANNELS / TILE_CHANNELS) * TILE_CHANNELS;
    const bool busy = thread % 32 < WEIGHT_SLOTS * MAP_ROWS;
    const int end = min((part + 1) * images_of_a_part, num_images);

    float sums[FOUND] = {}, of_bias[TILE_OUTPUTS] = {};
#pragma unroll 1
    for (int first = part * images_of_a_part; first < end; first += WEIGHT_SLOTS) {
        __syncthreads();
        for (int at = thread; at < WEIGHT_SLOTS * TILE_OUTPUTS * SQUARES; at += blockDim.x) {
            int image = at / (TILE_OUTPUTS * SQUARES), output = at / SQUARES % TILE_OUTPUTS, square = at % SQUARES;
            int row = square / POOLED_COLUMNS * 2, column = square % POOLED_COLUMNS * 2;
            float found[4] = {};
            if (first + image < end) {
                long long map = ((long long)lane * num_images + first + image) * OUTPUTS + first_output + output;
                before_tanh(found, gradient[map * SQUARES + square], squashed + map * PLACES + row * MAP_COLUMNS + column);
            }
            float* corner = maps + ((image * TILE_OUTPUTS + output) * MAP_ROWS + row) * MAP_STRIDE + column;
            corner[0] = found[0];
            corner[1] = found[1];
            corner[MAP_STRIDE] = found[2];
            corner[MAP_STRIDE + 1] = found[3];
        }
        for (int at = thread; at < WEIGHT_SLOTS * TILE_CHANNELS * PIXELS / 2; at += blockDim.x) {
            int image = at / (TILE_CHANNELS * PIXELS / 2), pixel = at * 2 % (TILE_CHANNELS * PIXELS);
            float2 two = make_float2(0, 0);
            if (first + image < end) {
                long long whole = (SHARED_IMAGES ? 0 : (long long)lane * num_images) + first + image;
                two = *(const float2*)(images + (whole * CHANNELS + first_channel) * PIXELS + pixel);
            }
            float* to = pixels + (image * TILE_CHANNELS * ROWS + pixel / COLUMNS) * IMAGE_STRIDE + pixel % COLUMNS;
            to[0] = two.x;
            to[1] = two.y;
        }
        __syncthreads();
        if (!busy) continue;
        const float* row = pixels + (slot * TILE_CHANNELS * ROWS + y + i) * IMAGE_STRIDE;
        const float* map = maps + (slot * TILE_OUTPUTS * MAP_ROWS + y) * MAP_STRIDE;
        float seen[TILE_CHANNELS][KERNEL - 1 + STEP];
#pragma unroll
        for (int at = 0; at < TILE_CHANNELS * (KERNEL - 1); at++)
            seen[at / (KERNEL - 1)][at % (KERNEL - 1)] = row[at / (KERNEL - 1) * ROWS * IMAGE_STRIDE + at % (KERNEL - 1)];
#pragma unroll 1
        for (int x = 0; x < MAP_COLUMNS; x += STEP) {
#pragma unroll
            for (int at = 0; at < TILE_CHANNELS * STEP; at++)
                seen[at / STEP][KERNEL - 1 + at % STEP] = row[at / STEP * ROWS * IMAGE_STRIDE + x + KERNEL - 1 + at % STEP];
#pragma unroll
            for (int step = 0; step < STEP; step++)
#pragma unroll
                for (int output = 0; output < TILE_OUTPUTS; output++) {
                    float above = map[output * MAP_ROWS * MAP_STRIDE + x + step];
                    of_bias[output] += above;
#pragma unroll
                    for (int at = 0; at < TILE_CHANNELS * KERNEL; at++) {
                        float& sum = sums[output * TILE_CHANNELS * KERNEL + at];
                        sum = fmaf(above, seen[at / KERNEL][step + at % KERNEL], sum);
                    }
                }
#pragma unroll
            for (int at = 0; at < TILE_CHANNELS * (KERNEL - 1); at++)
                seen[at / (KERNEL - 1)][at % (KERNEL - 1)] = seen[at / (KERNEL - 1)][STEP + at % (KERNEL - 1)];
        }
    }
    float* result = partial + ((long long)part * num_lanes + lane) * (OUTPUTS * CHANNELS * TAPS + OUTPUTS);
#pragma unroll
    for (int start = 0; start < FOUND + TILE_OUTPUTS; start += AT_ONCE) {
        __syncthreads();
#pragma unroll
        for (int at = start; at < start + AT_ONCE && at < FOUND + TILE_OUTPUTS; at++)
            maps[(i * AT_ONCE + at - start) * 33 + thread % 32] = at < FOUND ? sums[at] : of_bias[at - FOUND];
        __syncthreads();
        const int at = start + thread % AT_ONCE, whose = thread / AT_ONCE;
        if (whose >= KERNEL || at >= FOUND + TILE_OUTPUTS) continue;
        float total = 0;
#pragma unroll
        for (int from = 0; from < 32; from++) total += maps[thread * 33 + from];
        const int output = first_output + at / (TILE_CHANNELS * KERNEL);
        const int channel = first_channel + at / KERNEL % TILE_CHANNELS;
        if (at < FOUND)
            result[((output * CHANNELS + channel) * KERNEL + whose) * KERNEL + at % KERNEL] = total;
        else if (whose == 0 && first_channel == 0)
            result[OUTPUTS * CHANNELS * TAPS + first_output + at - FOUND] = total;
    }
}

// -> result (K, B, CHANNELS, ROWS, COLUMNS), the gradient of the images: the maps with a margin of four zeros,
// convolved with the turned kernels. Blocks: (B / IMAGE_SLOTS, K) of IMAGE_SLOTS * (PIXELS / 4) threads, a square each.
#define MARGIN (KERNEL - 1)
#define WIDE (MAP_COLUMNS + 2 * MARGIN)
#define HIGH (MAP_ROWS + 2 * MARGIN)
extern "C" __global__ void __launch_bounds__(IMAGE_SLOTS* PIXELS / 4) image_gradient(
    const float* __restrict__ weight, const float* __restrict__ gradient, const float* __restrict__ squashed,
    float* __restrict__ result, int num_images) {
    __shared__ __align__(16) float maps[IMAGE_SLOTS * IMAGE_OUTPUTS * HIGH * WIDE];
    __shared__ __align__(16) float taps[IMAGE_OUTPUTS * CHANNELS * TAPS_ALIGNED];
    const int thread = threadIdx.x, lane = blockIdx.y, first = blockIdx.x * IMAGE_SLOTS;
    const int slot = thread / (PIXELS / 4), square = thread % (PIXELS / 4);
    const int y = square / (COLUMNS / 2) * 2, x = square % (COLUMNS / 2) * 2;
    for (int at = thread; at < IMAGE_SLOTS * IMAGE_OUTPUTS * HIGH * WIDE; at += blockDim.x) maps[at] = 0;
    float sums[CHANNELS][4] = {};
#pragma unroll 1
    for (int start = 0; start < OUTPUTS; start += IMAGE_OUTPUTS) {
        __syncthreads();
        for (int at = thread; at < IMAGE_OUTPUTS * CHANNELS * TAPS_ALIGNED; at += blockDim.x) {
            int tap = at % TAPS_ALIGNED;
            long long filter = (long long)(lane * OUTPUTS + start) * CHANNELS + at / TAPS_ALIGNED;
            taps[at] = tap < TAPS ? weight[filter * TAPS + TAPS - 1 - tap] : 0;
        }
        for (int at = thread; at < IMAGE_SLOTS * IMAGE_OUTPUTS * SQUARES; at += blockDim.x) {
            int image = at / (IMAGE_OUTPUTS * SQUARES), output = at / SQUARES % IMAGE_OUTPUTS, own = at % SQUARES;
            int row = own / POOLED_COLUMNS * 2, column = own % POOLED_COLUMNS * 2;
            if (first + image >= num_images) break;
            long long map = ((long long)lane * num_images + first + image) * OUTPUTS + start + output;
            float found[4];
            before_tanh(found, gradient[map * SQUARES + own], squashed + map * PLACES + row * MAP_COLUMNS + column);
            float* corner = maps + ((image * IMAGE_OUTPUTS + output) * HIGH + row + MARGIN) * WIDE + column + MARGIN;
            *(float2*)corner = make_float2(found[0], found[1]);
            *(float2*)(corner + WIDE) = make_float2(found[2], found[3]);
        }
        __syncthreads();
#pragma unroll 1
        for (int output = 0; output < IMAGE_OUTPUTS; output++) {
            float window[WINDOW][WINDOW];
            look(window, maps + ((slot * IMAGE_OUTPUTS + output) * HIGH + y) * WIDE + x, WIDE);
#pragma unroll
            for (int channel = 0; channel < CHANNELS; channel++) {
                float own[TAPS_ALIGNED];
                read_taps(own, taps + (output * CHANNELS + channel) * TAPS_ALIGNED);
                convolve(sums[channel], own, window);
            }
        }
    }
    if (first + slot >= num_images) return;
#pragma unroll
    for (int channel = 0; channel < CHANNELS; channel++) {
        float* corner = result + (((long long)lane * num_images + first + slot) * CHANNELS + channel) * PIXELS + y * COLUMNS + x;
        *(float2*)corner = make_float2(sums[channel][0], sums[channel][1]);
        *(float2*)(corner + COLUMNS) = make_float2(sums[channel][2], sums[channel][3]);
    }
}
