#include "folded.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "../kernels/folded/forward.h"
#include "../kernels/gemm/gemm.h"
#include "tensors.h"

namespace msg3d::binding {
namespace {

// Memory that calls borrow and give back, so that a call allocates nothing once as many arenas exist as calls run at
// once.
class ArenaPool {
 public:
  class Loan {
   public:
    Loan(ArenaPool& pool, std::size_t bytes) : pool_(pool), block_(pool.take(bytes)) {}
    ~Loan() { pool_.give(block_); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    void* data() const { return block_.second; }

   private:
    ArenaPool& pool_;
    std::pair<std::size_t, void*> block_;
  };

 private:
  using Block = std::pair<std::size_t, void*>;
  static constexpr std::size_t kLargestKept = std::size_t{1} << 28;
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  Block take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found =
          std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& block) { return block.first >= bytes; });
      if (found != blocks_.end()) {
        const Block block = *found;
        blocks_.erase(found);
        return block;
      }
      if (!blocks_.empty()) {  // replaced by the larger one
        std::free(blocks_.back().second);
        blocks_.pop_back();
      }
    }
    const std::size_t page = bytes < kHugePage ? 4096 : kHugePage;
    bytes = (bytes + page - 1) / page * page;
    void* data = std::aligned_alloc(page, bytes);
    if (!data) throw std::bad_alloc();
#ifdef __linux__
    if (page == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);  // a hint: fewer page tables to walk
#endif
    return {bytes, data};
  }

  void give(const Block& block) {
    if (block.first > kLargestKept) return std::free(block.second);
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(block);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
};

ArenaPool& arenas() {
  static auto* pool = new ArenaPool;  // outlives every thread that might still run
  return *pool;
}

// logits = weight features + bias. The partial sums let compilers use vectors.
template <typename T>
void classify(const T* weight, const T* bias, int64_t classes, int64_t width, const double* features, T* logits) {
  constexpr int64_t kSums = 16;
  for (int64_t c = 0; c < classes; ++c, weight += width) {
    double sums[kSums] = {}, sum = bias[c];
    for (int64_t j = 0; j < width; j += kSums) {  // width is a multiple of 16
      for (int64_t i = 0; i < kSums; ++i) sums[i] += weight[j + i] * features[j + i];
    }
    for (const double part : sums) sum += part;
    logits[c] = static_cast<T>(sum);
  }
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run(const Tensor& x, const Tensor& sizes, const Tensor& weights,
                                       const Tensor& fc_weight, const Tensor& fc_bias, bool skip_absent,
                                       const std::optional<Tensor>& known, const Pool& pool) {
  folded::Network<T> network;
  require(network.read(sizes.const_data_ptr<int64_t>(), sizes.numel(), weights.const_data_ptr<T>(), weights.numel()),
          "folded_network: sizes and weights do not belong together");
  const int64_t N = x.size(0), M = x.size(1), frames = x.size(2), person_size = frames * x.size(3) * x.size(4);
  require(M == network.persons && x.size(3) == network.joints && x.size(4) == network.channels && frames > 0,
          "folded_network: clips must be (clips, ", network.persons, ", frames, ", network.joints, ", ",
          network.channels, "), found ", shape_of(x));
  const int64_t width = network.features(), classes = fc_bias.numel();
  require_shape("folded_network", "fc_weight", fc_weight, {classes, width}, x.scalar_type());
  if (known) require_shape("folded_network", "absent", *known, {M, width}, ScalarType::Double);
  require(fc_weight.is_contiguous() && (!known || known->is_contiguous()),
          "folded_network: fc_weight and absent must be contiguous");

  std::vector<double> rows(N * M * width);
  std::vector<folded::Person<T>> persons;
  std::vector<bool> is_absent(N * M);
  const T* clip = x.const_data_ptr<T>();
  for (int64_t i = 0; i < N * M; ++i, clip += person_size) {
    is_absent[i] = skip_absent && std::all_of(clip, clip + person_size, [](T value) { return value == 0; });
    if (!is_absent[i]) persons.push_back({clip, i % M, &rows[i * width]});
  }
  const bool asks = !known && static_cast<int64_t>(persons.size()) < N * M;
  Tensor absent = torch::stable::new_empty(x, {asks ? M : 0, width}, ScalarType::Double);
  const std::vector<T> nobody(asks ? person_size : 0);
  for (int64_t slot = 0; slot < M && asks; ++slot) {
    persons.push_back({nobody.data(), slot, absent.mutable_data_ptr<double>() + slot * width});
  }
  if (!persons.empty()) {
    const auto count = static_cast<int64_t>(persons.size());
    const folded::Machine<T> machine{pool, &fused_product<T>, gemm<T>(current_wide_isa()).panels,
                                     gemm<T>(current_isa()).passes};
    const ArenaPool::Loan arena(arenas(), sizeof(T) * folded::arena_size(network, count, frames, machine));
    folded::features<T>(network, persons.data(), count, frames, static_cast<T*>(arena.data()), machine);
  }

  Tensor logits = torch::stable::new_empty(x, {N, classes});
  Tensor features = torch::stable::new_empty(x, {N, width}, ScalarType::Double);
  const double* const of_absent = (known ? *known : absent).const_data_ptr<double>();
  for (int64_t n = 0; n < N; ++n) {
    double* mean = features.mutable_data_ptr<double>() + n * width;
    std::fill_n(mean, width, 0.0);
    for (int64_t m = 0; m < M; ++m) {
      const double* row = is_absent[n * M + m] ? of_absent + m * width : &rows[(n * M + m) * width];
      for (int64_t j = 0; j < width; ++j) mean[j] += row[j] / static_cast<double>(M);
    }
    classify(fc_weight.const_data_ptr<T>(), fc_bias.const_data_ptr<T>(), classes, width, mean,
             logits.mutable_data_ptr<T>() + n * classes);
  }
  return {logits, features, absent};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> folded_network(const Tensor& clips, const Tensor& sizes, const Tensor& weights,
                                                  const Tensor& fc_weight, const Tensor& fc_bias, bool skip_absent,
                                                  const std::optional<Tensor>& absent) {
  require(clips.dim() == 5, "folded_network: clips must be (clips, persons, frames, joints, channels), found ",
          shape_of(clips));
  const ScalarType type = clips.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Double, "folded_network: clips must be float32 or float64");
  require(type == weights.scalar_type(), "folded_network: clips and weights must have one dtype");
  require(sizes.scalar_type() == ScalarType::Long && sizes.is_contiguous() && weights.is_contiguous(),
          "folded_network: sizes must be int64, sizes and weights contiguous");
  require_shape("folded_network", "fc_bias", fc_bias, {fc_bias.numel()}, type);
  return (type == ScalarType::Float ? run<float> : run<double>)(torch::stable::contiguous(clips), sizes, weights,
                                                                fc_weight, fc_bias, skip_absent, absent, torch_pool());
}

}  // namespace msg3d::binding
