// Rounds random tensors by every kernel of every instruction set, and by the GPU's kernels on the host, on arrays of
// exactly their size, for the sanitizers to watch (`make sanitize`); all must give the same bits and the same counts.
// Arguments: the number of tensors, and a seed.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cpu/rounding.h"
#include "../../csrc/cuda/rounding/rounding.h"
#include "../../csrc/rounding_call.h"
#include "cases.h"

namespace {

using namespace engine;

// The bytes of an element of the input, and of the output.
int64_t in_bytes(int kind) { return kind == kFixedDouble ? 8 : 4; }
int64_t out_bytes(int kind) { return kind == kBFloat16 || kind >= kAddBFloat16 ? 2 : in_bytes(kind); }

bool may_be_stochastic(int kind) { return kind != kFloat16 && kind != kAddCompensated; }

int64_t elements(const RoundingOrder& order) { return order.batches * order.rows * order.columns; }

RoundingCall draw_call(Random& random, int kind) {
    RoundingCall call{};
    call.stochastic = kind == kAddBFloat16 || (may_be_stochastic(kind) && draw(random, 0, 3) > 0);
    const int64_t first = draw(random, 0, 300);
    // Nearest rounding takes all elements as one column.
    call.order = draw(random, 0, 2) && call.stochastic
                     ? RoundingOrder{draw(random, 1, 4), draw(random, 1, 300), draw(random, 1, 20), first}
                     : RoundingOrder{1, draw(random, 1, 3000), 1, first};
    call.key = random();
    call.format = {draw(random, 2, 25), draw(random, -20, 20), draw(random, 0, 1), nullptr};
    return call;
}

// What a kernel leaves: its output, its compensation, its counts.
using Left = std::vector<unsigned char>;

template <typename Run>
Left left_by(const Run& run, RoundingCall call, int kind, const Left& bits) {
    const int64_t count = elements(call.order), sizes[] = {count * in_bytes(kind), count * out_bytes(kind), count * 2};
    const Bytes in(sizes[0], 16), out(sizes[1], 16), rest(kind == kAddCompensated ? sizes[2] : 0, 16);
    const Bytes counts(kRoundingCounts * int64_t{sizeof(int64_t)}), step(sizeof(int64_t));
    std::memcpy(in.get(), bits.data(), static_cast<size_t>(sizes[0]));
    std::memcpy(out.get(), bits.data() + sizes[0], static_cast<size_t>(sizes[1]));
    if (rest.get()) std::memcpy(rest.get(), bits.data() + sizes[0] + sizes[1], static_cast<size_t>(sizes[2]));
    std::memset(counts.get(), 0, kRoundingCounts * sizeof(int64_t));
    std::memset(step.get(), 1, sizeof(int64_t));
    call.in = in.get(), call.out = out.get(), call.compensation = rest.get();
    call.counts = static_cast<int64_t*>(counts.get()), call.step = static_cast<const int64_t*>(step.get());
    run(call);
    Left left;
    for (const auto& [from, size] : {std::pair{out.get(), sizes[1]}, {rest.get(), rest.get() ? sizes[2] : 0},
                                     {counts.get(), kRoundingCounts * int64_t{sizeof(int64_t)}}})
        left.insert(left.end(), static_cast<unsigned char*>(from), static_cast<unsigned char*>(from) + size);
    return left;
}

template <typename Kernels>
auto kernel_of(const Kernels& k, int kind) {
    decltype(k.fixed_float) all[] = {k.fixed_float, k.fixed_double, k.bfloat16, k.float16, k.add_bfloat16,
                                     k.add_compensated};
    return all[kind];
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
    const int tensors = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int64_t calls = 0, failures = 0;
    for (int i = 0; i < tensors; ++i) {
        for (int kind = 0; kind < kRoundingKinds; ++kind) {
            const RoundingCall call = draw_call(random, kind);
            Left bits(static_cast<size_t>(elements(call.order) * (in_bytes(kind) + out_bytes(kind) + 2)));
            for (unsigned char& byte : bits) byte = static_cast<unsigned char>(random());
            const auto baseline = kernel_of(*rounding_kernels("baseline"), kind);
            const Left expected = left_by([&](const RoundingCall& c) { baseline(c, 1); }, call, kind, bits);
            const auto compare = [&](const char* name, const auto& run) {
                ++calls;
                if (left_by(run, call, kind, bits) == expected) return;
                ++failures;
                std::printf("kind %d of tensor %d: %s differs from baseline\n", kind, i, name);
            };
            for (const char* set : {"avx512", "avx2", "baseline"})
                if (const auto* kernels = rounding_kernels(set); kernels && supported(set))
                    compare(set, [&](const RoundingCall& c) { kernel_of(*kernels, kind)(c, 3); });
            compare("cuda", [&](const RoundingCall& c) { kernel_of(cuda::rounding, kind)(c, nullptr); });
        }
    }
    std::printf("%d tensors, %lld calls, %lld failures\n", tensors, static_cast<long long>(calls),
                static_cast<long long>(failures));
    return failures != 0;
}
