// A program of kernels that go where they must not, one named by its argument, for test_sanitize.py: the sanitizers see
// what is done to memory in fibers, and where.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace engine {
namespace {

struct Line {
    float at[100];
};

// Its values one place on, but of the last thread.
__global__ void correct(const float* in, float* out) {
    Line& line = shared_memory<Line>();
    line.at[threadIdx.x] = in[threadIdx.x];
    block_barrier();
    out[threadIdx.x] = line.at[threadIdx.x + 1 < blockDim.x ? threadIdx.x + 1 : 0];
}

__global__ void shared_load(const float*, float* out) {
    const float* line = shared_memory<Line>().at;
    block_barrier();
    out[threadIdx.x] = line[threadIdx.x + 1];
}

__global__ void array_load(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }

__global__ void array_store(const float*, float* out) {
    block_barrier();
    (out - 1)[threadIdx.x] = 1;
}

__global__ void own_array(const float* in, float* out) {
    float own[4] = {};
    for (unsigned i = 0; i < 4; ++i) own[i] = in[i];
    block_barrier();
    out[threadIdx.x] = own[threadIdx.x % 5];
}

__global__ void misaligned(const float* in, float* out) {
    out[threadIdx.x] = reinterpret_cast<const float4*>(in + threadIdx.x / 100 + 1)->x;
}

// Leaves frames behind that nobody returns from; the next launch has the same stacks.
__global__ void divergent(const float* in, float* out) {
    float own[64];
    for (unsigned i = 0; i < 64; ++i) own[i] = in[i];
    if (threadIdx.x < 50) block_barrier();
    out[threadIdx.x] = own[threadIdx.x % 64];
}

}  // namespace
}  // namespace engine

int main(int, char** argv) {
    using namespace engine;
    const struct {
        const char* name;
        void (*kernel)(const float*, float*);
    } cases[] = {{"correct", correct},         {"shared_load", shared_load}, {"array_load", array_load},
                 {"array_store", array_store}, {"own_array", own_array},     {"misaligned", misaligned},
                 {"divergent", divergent}};
    const std::vector<float> in(100, 1);
    std::vector<float> out(100);
    for (const auto& one : cases) {
        if (one.name != std::string(argv[1])) continue;
        const auto run = [&](void (*kernel)(const float*, float*)) {
            return launch(kernel, dim3(3), dim3(100), sizeof(Line), nullptr, in.data(), out.data());
        };
        if (run(one.kernel) != cudaSuccess) std::printf("%s\n", host::failure().c_str());
        if (run(correct) != cudaSuccess || out != in) return 2;
        std::printf("and then a correct launch\n");
        return 0;
    }
    return 3;
}
