// Normalises random images by the kernels of every instruction set, and by the GPU's kernels on the host, on arrays of
// exactly their size, for the sanitizers to watch (`make sanitize`); all must be near the formulas of csrc/lrn.h, computed
// in doubles. Arguments: the number of images, and a seed.
#include <cmath>

#include "../../csrc/cpu/lrn.h"
#include "../../csrc/cuda/lrn/lrn.h"
#include "cases.h"

namespace {

using namespace engine;

LrnCall draw_call(Random& random) {
    LrnCall call{};
    call.images = draw(random, 1, 3), call.innermost = draw(random, 0, 1);
    call.channels = draw(random, 0, 3) ? draw(random, 1, 40) : draw(random, 60, 400);
    call.places = draw(random, 0, 3) ? draw(random, 1, 60) : draw(random, 200, 1100);
    const int64_t most = draw(random, 0, 3) ? 4 : call.channels;
    call.below = draw(random, 0, std::min(most, call.channels - 1));
    call.above = draw(random, 0, std::min(most, call.channels - 1));
    call.scale = 0.1, call.k = 1.5, call.beta = draw(random, 0, 2) ? 0.75 : 0.6;
    return call;
}

int64_t elements(const LrnCall& call) { return call.images * call.channels * call.places; }

// What csrc/lrn.h says; numbers: those of x, and behind them those of the gradient.
std::vector<double> by_formula(const LrnCall& call, const std::vector<double>& numbers, bool backward) {
    const double *const x = numbers.data(), *const gradient = x + elements(call);
    std::vector<double> out(static_cast<size_t>(elements(call)));
    for (int64_t place = 0; place < call.images * call.places; ++place) {
        const auto at = [&](int64_t channel) {
            if (call.innermost) return place * call.channels + channel;
            return (place / call.places * call.channels + channel) * call.places + place % call.places;
        };
        const auto window = [&](int64_t channel, int64_t below, int64_t above, const auto& term) {
            double sum = 0;
            for (int64_t other = std::max<int64_t>(0, channel - below);
                 other <= std::min(call.channels - 1, channel + above); ++other)
                sum += term(other);
            return sum;
        };
        const auto s = [&](int64_t channel) {
            return call.k + call.scale * window(channel, call.below, call.above,
                                                [&](int64_t other) { return x[at(other)] * x[at(other)]; });
        };
        std::vector<double> sums;
        for (int64_t channel = 0; channel < call.channels; ++channel) sums.push_back(s(channel));
        const auto power = [&](int64_t channel, double exponent) {
            return std::pow(sums[static_cast<size_t>(channel)], exponent);
        };
        const auto g = [&](int64_t channel) {
            return gradient[at(channel)] * x[at(channel)] * power(channel, -call.beta - 1);
        };
        for (int64_t channel = 0; channel < call.channels; ++channel)
            out[static_cast<size_t>(at(channel))] =
                backward ? gradient[at(channel)] * power(channel, -call.beta) -
                               2 * call.beta * call.scale * x[at(channel)] * window(channel, call.above, call.below, g)
                         : x[at(channel)] * power(channel, -call.beta);
    }
    return out;
}

// How far from the formula a kernel's result is, at most.
template <typename T, typename Run>
double error_of(const Run& run, LrnCall call, const std::vector<double>& numbers, bool backward, int threads) {
    const int64_t count = elements(call), bytes = count * int64_t{sizeof(T)};
    const Bytes x(bytes, 8), gradient(bytes, 8), out(bytes, 8);
    const Bytes workspace(threads ? lrn_workspace(call, backward, sizeof(T), threads) : 0, 8);
    std::vector<double> rounded;
    for (int64_t i = 0; i < 2 * count; ++i) {
        T* const to = static_cast<T*>(i < count ? x.get() : gradient.get());
        to[i % count] = static_cast<T>(numbers[static_cast<size_t>(i)]);
        rounded.push_back(double(to[i % count]));
    }
    call.x = x.get(), call.gradient = backward ? gradient.get() : nullptr;
    call.out = out.get(), call.workspace = workspace.get();
    run(call);
    const std::vector<double> expected = by_formula(call, rounded, backward);
    double error = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double apart = std::abs(double(static_cast<T*>(out.get())[i]) - expected[static_cast<size_t>(i)]);
        error = apart <= error ? error : apart;  // NaN too
    }
    return error;
}

bool supported(const char* set) {
#if defined(__x86_64__)
    if (!std::strcmp(set, "avx512")) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(set, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const int images = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int64_t calls = 0, failures = 0;
    for (int i = 0; i < images; ++i) {
        const LrnCall call = draw_call(random);
        std::vector<double> numbers(static_cast<size_t>(2 * elements(call)));
        for (double& number : numbers) number = std::normal_distribution<>(0, 2)(random);
        for (const bool backward : {false, true}) {
            const auto compare = [&](const char* name, double of_float, double of_double) {
                ++calls;
                if (of_float < 1e-4 && of_double < 1e-12) return;
                ++failures;
                std::printf("images %d, %s: %s is off by %g, and in doubles by %g\n", i, backward ? "backward" : "forward",
                            name, of_float, of_double);
            };
            for (const char* set : {"avx512", "avx2", "baseline"})
                if (const LrnKernels* kernels = lrn_kernels(set); kernels && supported(set))
                    compare(set,
                            error_of<float>([&](const LrnCall& c) { kernels->run_float(c, 3); }, call, numbers, backward, 3),
                            error_of<double>([&](const LrnCall& c) { kernels->run_double(c, 3); }, call, numbers, backward,
                                             3));
            if (elements(call) > 20000) continue;  // a GPU's threads take long on the host
            compare("cuda",
                    error_of<float>([&](const LrnCall& c) { cuda::lrn.run_float(c, nullptr); }, call, numbers, backward, 0),
                    error_of<double>([&](const LrnCall& c) { cuda::lrn.run_double(c, nullptr); }, call, numbers, backward,
                                     0));
        }
    }
    std::printf("%d images, %lld calls, %lld failures\n", images, static_cast<long long>(calls),
                static_cast<long long>(failures));
    return failures != 0;
}
