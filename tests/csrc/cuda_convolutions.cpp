// Runs every CUDA algorithm, compiled for the host with small portions, on random shapes, on arrays of exactly the size
// that the contract gives them, in a random order of threads and blocks, for sanitizers to watch (`make sanitize`); and
// compares the values with the definition in double. Arguments: the number of shapes, and a seed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/convolution.h"
#include "cases.h"

namespace {

using namespace engine;

struct Data {
    std::vector<double> left, right, bias, expected;
    double squares = 0;  // of all summands: what the result's would be, were none to cancel another
};

// The definition: calls `add` with the places of every product's three elements, in NHWC order.
template <typename Add>
void for_each_product(const ConvShape& s, const Add& add) {
    const int64_t in_group = s.channels / s.groups, out_group = s.filters / s.groups;
    for (int64_t n = 0; n < s.batch; ++n)
        for (int64_t p = 0; p < s.out_h * s.out_w; ++p)
            for (int64_t q = 0; q < s.kernel_h * s.kernel_w; ++q) {
                const int64_t y = p / s.out_w * s.stride_h - s.padding_h + q / s.kernel_w * s.dilation_h;
                const int64_t x = p % s.out_w * s.stride_w - s.padding_w + q % s.kernel_w * s.dilation_w;
                if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
                for (int64_t k = 0; k < s.filters; ++k)
                    for (int64_t c = 0; c < in_group; ++c)
                        add(((n * s.height + y) * s.width + x) * s.channels + k / out_group * in_group + c,
                            (k * s.kernel_h * s.kernel_w + q) * in_group + c,
                            (n * s.out_h * s.out_w + p) * s.filters + k);
            }
}

Data draw_data(Random& random, const ConvShape& s, Direction direction) {
    const Sizes sizes = sizes_of(s, direction);
    std::normal_distribution<double> normal;
    Data data;
    for (auto [values, count] :
         {std::pair{&data.left, sizes.left}, {&data.right, sizes.right}, {&data.bias, s.filters}})
        // Floats, so that both types compute with the same numbers.
        for (int64_t i = 0; i < count; ++i) values->push_back(static_cast<float>(normal(random)));
    data.expected.resize(static_cast<size_t>(sizes.out));
    const auto add = [&data](int64_t out, double value) {
        data.expected[static_cast<size_t>(out)] += value;
        data.squares += value * value;
    };
    const double *left = data.left.data(), *right = data.right.data();
    for_each_product(s, [&](int64_t image, int64_t weight, int64_t out) {
        if (direction == Direction::forward) add(out, left[image] * right[weight]);
        if (direction == Direction::backward_input) add(image, left[out] * right[weight]);
        if (direction == Direction::backward_weight) add(weight, left[out] * right[image]);
    });
    for (int64_t i = 0; direction == Direction::forward && i < sizes.out; ++i)
        add(i, data.bias[static_cast<size_t>(i % s.filters)]);
    return data;
}

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    std::printf("a launch failed: %s\n", host::failure().c_str());
    std::exit(1);
}

// Returns the relative L2 error of one call.
template <typename T>
double error_of(const CudaAlgorithm& algorithm, const ConvShape& s, Direction direction, const Data& data,
                bool prepared, uint64_t seed) {
    constexpr int size = sizeof(T);
    constexpr size_t aligned = 16;  // what the widest load wants, and all that callers promise
    const auto run = size == 4 ? algorithm.run_float : algorithm.run_double;
    const auto prepare = size == 4 ? algorithm.prepare_float : algorithm.prepare_double;
    const Filled<T> left(data.left, aligned), right(data.right, aligned), bias(data.bias, aligned);
    const int64_t count = sizes_of(s, direction).out;
    const Bytes form(prepared ? algorithm.prepared_bytes(s, size) : 0, aligned);
    if (prepared) check(prepare(s, right.get(), form.get(), nullptr));
    const Bytes out(count * size, aligned);
    const Bytes workspace(algorithm.workspace(s, direction, size, prepared), 256);
    host::seed = seed;
    check(run({s, direction, left.get(), prepared ? nullptr : right.get(),
               direction == Direction::forward ? bias.get() : nullptr, form.get(), out.get(), workspace.get(), nullptr}));
    double difference = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double off = static_cast<const T*>(out.get())[i] - data.expected[static_cast<size_t>(i)];
        difference += off * off;
    }
    return std::sqrt(difference / (data.squares > 0 ? data.squares : 1));
}

double bound(const CudaAlgorithm& algorithm, int size) {
    return size == 8 ? 1e-12 : algorithm.name == std::string("winograd4") ? 6e-6 : 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
    const int shapes = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int64_t failures = 0;
    std::map<std::string, int> calls;
    for (int i = 0; i < shapes; ++i) {
        // Kinds in turn, from the last one on, so that a few shapes have something for every algorithm.
        const ConvShape s = draw_shape(random, (kKinds - 1 + 3 * i) % kKinds, 14);
        for (int d = 0; d < 3; ++d) {
            const Direction direction{d};
            const Data data = draw_data(random, s, direction);
            for (const auto* a = cuda_algorithms(); *a; ++a) {
                const CudaAlgorithm& algorithm = **a;
                if (algorithm.refuses(s, direction)) continue;
                for (int prepared = 0; prepared <= (d == 0 && algorithm.prepare_float ? 1 : 0); ++prepared)
                    for (int size : {4, 8}) {
                        const auto error_of_type = size == 4 ? error_of<float> : error_of<double>;
                        const uint64_t seed = random();
                        const double error = error_of_type(algorithm, s, direction, data, prepared, seed);
                        ++calls[algorithm.name];
                        if (error <= bound(algorithm, size)) continue;  // a NaN fails too
                        ++failures;
                        std::printf("%s, direction %d, %d bytes, prepared %d, seed %llu: error %g (%s)\n",
                                    algorithm.name, d, size, prepared, static_cast<unsigned long long>(seed), error,
                                    text(s).c_str());
                    }
            }
        }
    }
    for (const auto& [name, count] : calls) std::printf("%s: %d calls\n", name.c_str(), count);
    std::printf("%d shapes, %ld failures\n", shapes, long(failures));
    return failures ? 1 : 0;
}
