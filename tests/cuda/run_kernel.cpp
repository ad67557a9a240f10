// A program that runs one of the kernels of kernels.cu: its name, and 1 for the correct one or 0.
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" const char* run_case(const char* name, bool correct, uint64_t seed, const unsigned* grid,
                                const unsigned* block, uint64_t shared_bytes, float* out);

int main(int, char** argv) {
    const unsigned grid[] = {3, 1, 1}, block[] = {256, 1, 1};
    std::vector<float> out(3 * 256);
    std::puts(run_case(argv[1], *argv[2] == '1', 0, grid, block, 256 * sizeof(float), out.data()));
}
