// Depthwise convolution (every channel has a filter of its own), computed directly.
//
// Each input value is multiplied by few weights, so the work is bound by loads and by memory where a dense
// convolution is bound by arithmetic. The channels of NHWC lie in the lanes of vectors; blocks of outputs are held
// in registers, two rows at a time, so that a vector of the image is loaded once for both; compare Zhang, Franchetti
// and Low, "High performance zero-memory overhead direct convolutions", ICML 2018. The weight, [channels][taps], is
// laid out anew as [vectors of channels][taps][lanes].
#include "../../simd/vector.h"
#include "../convolution.h"
#include "../team.h"
#include "depthwise_correlate.h"
#include "depthwise_weight.h"

namespace engine::ENGINE_ISA {
namespace {

const char* refuses(const ConvShape& s, Direction) {
    if (s.groups != s.channels) return "the groups have more than one channel";
    if (s.filters != s.channels) return "a channel has more than one filter";
    return nullptr;
}

int64_t packed_elements(const ConvShape& s, int lanes) {
    return round_up(s.channels, lanes) * s.kernel_h * s.kernel_w;
}
int64_t prepared_bytes(const ConvShape& s, int size) {
    return packed_elements(s, kVectorBytes / size) * size;
}

// packed[taps][lanes] of one vector of channels.
template <typename T>
void pack_weight(const ConvShape& s, const T* weight, int64_t vector, T* packed) {
    const int64_t taps = s.kernel_h * s.kernel_w, first = vector * kLanes<T>;
    const int64_t lanes = smaller(kLanes<T>, s.channels - first);
    packed += first * taps;
    for (int64_t tap = 0; tap < taps; ++tap, packed += kLanes<T>) {
        for (int64_t lane = 0; lane < lanes; ++lane) packed[lane] = weight[(first + lane) * taps + tap];
        for (int64_t lane = lanes; lane < kLanes<T>; ++lane) packed[lane] = 0;
    }
}

template <typename T>
void pack_weights(Team& team, const ConvShape& s, const void* weight, void* packed) {
    team.share(ceil_div(s.channels, kLanes<T>), [&](int64_t vector) {
        pack_weight(s, static_cast<const T*>(weight), vector, static_cast<T*>(packed));
    });
}

template <typename T>
void prepare(const ConvShape& s, const void* weight, void* prepared, int threads) {
    with_team(threads, [&](Team& team) { pack_weights<T>(team, s, weight, prepared); });
}

template <typename T>
int64_t workspace_elements(const ConvShape& s, Direction direction, int threads, bool prepared) {
    if (direction == Direction::backward_weight) {
        const WeightPlan p = weight_plan<T>(s);
        return p.partial_elements + threads * p.thread_elements;
    }
    const CorrelatePlan p = correlate_plan<T>(s, direction);
    return (prepared ? 0 : packed_elements(s, kLanes<T>)) + threads * p.band_elements;
}

int64_t workspace(const ConvShape& s, Direction direction, int size, int threads, bool prepared) {
    return size == sizeof(float) ? workspace_elements<float>(s, direction, threads, prepared) * size
                                 : workspace_elements<double>(s, direction, threads, prepared) * size;
}

template <typename T>
void run_weight(const ConvCall& call) {
    const WeightPlan p = weight_plan<T>(call.shape);
    T* partial = static_cast<T*>(call.workspace);
    T* bands = partial + p.partial_elements;
    with_team(call.threads, [&](Team& team) {
        T* own = bands + Team::this_thread() * p.thread_elements;
        team.share(p.parts * p.vectors, [&](int64_t piece) {
            sum_part(p, call, piece / p.vectors, piece % p.vectors, own, partial + piece * p.taps * kLanes<T>);
        });
        team.share(p.vectors, [&](int64_t v) { join_parts(p, partial, v, static_cast<T*>(call.out)); });
    });
}

template <typename T>
void run(const ConvCall& call) {
    if (call.direction == Direction::backward_weight) return run_weight<T>(call);
    const ConvShape& s = call.shape;
    const CorrelatePlan p = correlate_plan<T>(s, call.direction);
    T* bands = static_cast<T*>(call.workspace);
    with_team(call.threads, [&](Team& team) {
        T* own = bands + Team::this_thread() * p.band_elements;
        const T* weight = static_cast<const T*>(call.prepared);
        if (!weight) {
            T* packed = bands + call.threads * p.band_elements;
            pack_weights<T>(team, s, call.right, packed);
            weight = packed;
        }
        team.share(p.batch * p.row_phases * p.bands * p.pieces,
                   [&](int64_t piece) { correlate_piece(p, call, weight, own, piece); });
    });
}

}  // namespace

extern const Algorithm depthwise = {"depthwise",    refuses,        workspace,       run<float>, run<double>,
                                    prepared_bytes, prepare<float>, prepare<double>, nullptr};

}  // namespace engine::ENGINE_ISA
