#include "folded.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

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

namespace msg3d::binding {
namespace {

using torch::headeronly::ScalarType;

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

template <typename T>
std::tuple<Tensor, Tensor> features_of(const Tensor& x, const Tensor& sizes, const Tensor& weights,
                                       int64_t num_features, bool skip_absent, const double* absent, const Pool& pool) {
  folded::Network<T> network;
  STD_TORCH_CHECK(
      network.read(sizes.const_data_ptr<int64_t>(), sizes.numel(), weights.const_data_ptr<T>(), weights.numel()),
      "folded_features: sizes and weights do not belong together");
  const int64_t N = x.size(0), M = x.size(1), frames = x.size(2), person_size = frames * x.size(3) * x.size(4);
  STD_TORCH_CHECK(M == network.persons && x.size(3) == network.joints && x.size(4) == network.channels && frames > 0,
                  "folded_features: x must be (clips, ", network.persons, ", frames, ", network.joints, ", ",
                  network.channels, ")");
  STD_TORCH_CHECK(num_features == network.features(), "folded_features: num_features must be ", network.features());
  const int64_t width = num_features;
  Tensor out = torch::stable::new_empty(x, {N * M, width}, ScalarType::Double);
  Tensor present = torch::stable::new_empty(x, {N * M}, ScalarType::Bool);
  double* features = out.mutable_data_ptr<double>();
  bool* is_present = present.mutable_data_ptr<bool>();
  const T* clip = x.const_data_ptr<T>();

  std::vector<folded::Person<T>> persons;
  for (int64_t i = 0; i < N * M; ++i, clip += person_size, features += width) {
    is_present[i] = !skip_absent || std::any_of(clip, clip + person_size, [](T value) { return value != 0; });
    if (is_present[i]) {
      persons.push_back({clip, i % M, features});
    } else if (absent) {
      std::copy_n(absent + i % M * width, width, features);
    } else {
      std::fill_n(features, width, 0.0);
    }
  }
  if (!persons.empty()) {
    const auto count = static_cast<int64_t>(persons.size());
    const folded::Machine<T> machine{pool, &fused_product<T>, gemm<T>(current_wide_isa()).panels};
    const ArenaPool::Loan arena(arenas(), sizeof(T) * folded::arena_size(network, count, frames, machine));
    folded::features<T>(network, persons.data(), count, frames, static_cast<T*>(arena.data()), machine);
  }
  return {out, present};
}

}  // namespace

std::tuple<Tensor, Tensor> folded_features(const Tensor& clips, const Tensor& sizes, const Tensor& weights,
                                           int64_t num_features, bool skip_absent,
                                           const std::optional<Tensor>& absent) {
  STD_TORCH_CHECK(clips.dim() == 5, "folded_features: x must be (clips, persons, frames, joints, channels), found ",
                  clips.dim(), " dimensions");
  STD_TORCH_CHECK(clips.scalar_type() == weights.scalar_type(), "folded_features: x and weights must have one dtype");
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Long && sizes.is_contiguous() && weights.is_contiguous(),
                  "folded_features: sizes must be int64, sizes and weights contiguous");
  STD_TORCH_CHECK(!absent || (absent->scalar_type() == ScalarType::Double && absent->is_contiguous() &&
                              absent->numel() == clips.size(1) * num_features),
                  "folded_features: absent must be contiguous float64, (persons, ", num_features, ")");
  const double* const of_absent = absent ? absent->const_data_ptr<double>() : nullptr;
  const Tensor x = torch::stable::contiguous(clips);
  const Pool pool{static_cast<int>(torch::stable::get_num_threads()),
                  [](int workers, void (*body)(void*, int), void* context) {
                    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
                      for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
                    });
                  }};
  if (x.scalar_type() == ScalarType::Float)
    return features_of<float>(x, sizes, weights, num_features, skip_absent, of_absent, pool);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "folded_features: x must be float32 or float64");
  return features_of<double>(x, sizes, weights, num_features, skip_absent, of_absent, pool);
}

}  // namespace msg3d::binding
