// Runs every convolution algorithm of every instruction set on random shapes, on arrays of exactly the size that the
// contract gives them, for the address and undefined-behaviour sanitizers to watch (`make sanitize`); and compares
// the values with the definition in double. Arguments: the number of shapes, and a seed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "cases.h"

namespace {

using namespace engine;

struct Data {
    std::vector<double> left, right, bias, expected;
};

Data draw_data(Random& random, const ConvShape& s, Direction direction) {
    const Sizes sizes = sizes_of(s, direction);
    std::normal_distribution<double> normal;
    Data data;
    for (auto [values, count] : {std::pair{&data.left, sizes.left}, {&data.right, sizes.right}, {&data.bias, s.filters}})
        // Floats, so that both types compute with the same numbers.
        for (int64_t i = 0; i < count; ++i) values->push_back(static_cast<float>(normal(random)));
    data.expected.resize(static_cast<size_t>(sizes.out));
    const auto* sets = instruction_sets();
    while (sets[1].name) ++sets;  // the baseline's naive, in double: the definition
    sets->algorithms[0]->run_double({s, direction, data.left.data(), data.right.data(),
                                     direction == Direction::forward ? data.bias.data() : nullptr, nullptr,
                                     data.expected.data(), nullptr, 1});
    return data;
}

// Returns the relative L2 error of one call, or infinity if other threads give other bits.
template <typename T>
double error_of(const Algorithm& algorithm, const ConvShape& s, Direction direction, const Data& data, bool prepared) {
    const int size = sizeof(T);
    const auto run = size == 4 ? algorithm.run_float : algorithm.run_double;
    const auto prepare = size == 4 ? algorithm.prepare_float : algorithm.prepare_double;
    const Filled<T> left(data.left), right(data.right), bias(data.bias);
    const int64_t count = sizes_of(s, direction).out;
    const Bytes form(prepared ? algorithm.prepared_bytes(s, size) : 0);
    if (prepared) prepare(s, right.get(), form.get(), 2);
    const Bytes first(count * size), second(count * size);
    for (const auto& [out, threads] : {std::pair{&first, 1}, {&second, 3}}) {
        const Bytes workspace(algorithm.workspace(s, direction, size, threads, prepared));
        run({s, direction, left.get(), prepared ? nullptr : right.get(),
             direction == Direction::forward ? bias.get() : nullptr, form.get(), out->get(), workspace.get(), threads});
    }
    if (std::memcmp(first.get(), second.get(), static_cast<size_t>(count * size))) return INFINITY;
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double expected = data.expected[static_cast<size_t>(i)];
        const double off = static_cast<const T*>(first.get())[i] - expected;
        difference += off * off, norm += expected * expected;
    }
    return std::sqrt(difference / (norm > 0 ? norm : 1));
}

double bound(const Algorithm& algorithm, int size) {
    if (size == 8) return 1e-12;
    const std::string name = algorithm.name;
    return name == "winograd6" ? 1.5e-5 : name == "winograd4" || name == "naive" ? 6e-6 : 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
    const int shapes = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int64_t calls = 0, failures = 0;
    for (int i = 0; i < shapes; ++i) {
        const ConvShape s = draw_shape(random, draw(random, 0, kKinds - 1));
        for (int d = 0; d < 3; ++d) {
            const Direction direction{d};
            const Data data = draw_data(random, s, direction);
            for (const auto* set = instruction_sets(); set->name; ++set)
                for (const auto* a = set->algorithms; set->supported() && *a; ++a) {
                    const Algorithm& algorithm = **a;
                    if (algorithm.refuses(s, direction)) continue;
                    for (int prepared = 0; prepared <= (d == 0 && algorithm.prepare_float ? 1 : 0); ++prepared)
                        for (int size : {4, 8}) {
                            const double error = size == 4 ? error_of<float>(algorithm, s, direction, data, prepared)
                                                           : error_of<double>(algorithm, s, direction, data, prepared);
                            ++calls;
                            if (error <= bound(algorithm, size)) continue;  // a NaN fails too
                            ++failures;
                            std::printf("%s %s, direction %d, %d bytes, prepared %d: error %g (%s)\n", set->name,
                                        algorithm.name, d, size, prepared, error, text(s).c_str());
                        }
                }
        }
    }
    std::printf("%d shapes, %ld calls, %ld failures\n", shapes, long(calls), long(failures));
    return failures ? 1 : 0;
}
