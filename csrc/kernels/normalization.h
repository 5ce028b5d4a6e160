// Batch normalisation of rows (samples x rows of a sample) x columns, with a multiplicity for each sample.
//
//     mean = sum_n w_n sum_r x / W,   var = sum_n w_n sum_r (x - mean)^2 / W,   W = sum_n w_n * rows
//     y = gamma * (x - mean) / sqrt(var + eps) + beta
//     grad_x = gamma / sigma * (g - w_n / W * (sum g + xhat * sum(g * xhat)))
//
// A sample of multiplicity w stands for w equal samples: its g is then the sum of their gradients, and so is grad_x.
// Blocks of a few rows are summed in the tensor's type, blocks are added in double in a fixed order: the result depends
// on the split into chunks, which sizes decide, and never on the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "chunks.h"
#include "gemm/gemm.h"

namespace msg3d {

namespace batch_norm {

constexpr int64_t kBlock = 64;  // rows summed in the tensor's own type

template <typename T>
T multiplicity_of(const T* multiplicity, int64_t sample) {
  return multiplicity ? multiplicity[sample] : T(1);
}

// What the pieces contribute to the statistics of `columns` columns; the pieces of one sample are equally weighted.
class Moments {
 public:
  Moments(int64_t pieces, int64_t columns)
      : columns_(columns), count_(pieces), mean_(pieces * columns), squares_(pieces * columns) {}

  // Columns [first, first + columns) of one piece's rows.
  template <typename T>
  void add(const ColumnPasses<T>& passes, int64_t piece, int64_t rows, int64_t first, int64_t columns, const T* x,
           int64_t x_row);

  // Mean and biased variance, (2, columns); the weight W.
  template <typename T>
  double merge(const Chunks& chunks, const T* multiplicity, double* statistics) const;

 private:
  int64_t columns_;
  std::vector<double> count_, mean_, squares_;
};

// sum g and sum g * (x - mean) of every piece.
class GradientSums {
 public:
  GradientSums(int64_t pieces, int64_t columns) : pieces_(pieces), columns_(columns), sums_(pieces * 2 * columns) {}

  // Columns [first, first + p.columns) of one piece's rows; `p` says all but sum and product.
  template <typename T>
  void add(const ColumnPasses<T>& passes, int64_t piece, int64_t first, NormGradient<T> p);

  // (2, columns), added in the order of the pieces.
  std::vector<double> merge() const;

 private:
  int64_t pieces_, columns_;
  std::vector<double> sums_;
};

// y = x * scale + shift.
template <typename T>
struct Affine {
  std::vector<T> scale, shift;

  // statistics (2, columns): mean, biased variance; gamma_beta (2, columns).
  Affine(int64_t columns, const double* statistics, const T* gamma_beta, double eps) : scale(columns), shift(columns) {
    for (int64_t c = 0; c < columns; ++c) {
      const double factor = gamma_beta[c] / std::sqrt(statistics[columns + c] + eps);
      scale[c] = static_cast<T>(factor);
      shift[c] = static_cast<T>(gamma_beta[columns + c] - statistics[c] * factor);
    }
  }
};

// grad_x = g * a + w_n * ((x - mean) * b + c), and the gradients of gamma and beta.
template <typename T>
class Backward {
 public:
  std::vector<T> mean, a;

  Backward(int64_t columns, const double* statistics, const T* gamma_beta, double eps)
      : mean(columns), a(columns), inverse_(columns), b_(columns), c_(columns) {
    for (int64_t c = 0; c < columns; ++c) {
      inverse_[c] = 1 / std::sqrt(statistics[columns + c] + eps);
      mean[c] = static_cast<T>(statistics[c]);
      a_exact_.push_back(gamma_beta[c] * inverse_[c]);
      a[c] = static_cast<T>(a_exact_[c]);
    }
  }

  // Takes the sums, gives grad_gamma_beta (2, columns).
  void finish(const std::vector<double>& sums, double weight, T* grad_gamma_beta) {
    const int64_t columns = static_cast<int64_t>(a.size());
    for (int64_t c = 0; c < columns; ++c) {
      const double sum = sums[c], product = sums[columns + c] * inverse_[c];
      grad_gamma_beta[c] = static_cast<T>(product);
      grad_gamma_beta[columns + c] = static_cast<T>(sum);
      b_[c] = -a_exact_[c] * inverse_[c] * product / weight;
      c_[c] = -a_exact_[c] * sum / weight;
    }
  }

  // w_n * b and w_n * c of `columns` columns from `first` on.
  void weighted(T multiplicity, int64_t first, int64_t columns, T* b, T* c) const {
    for (int64_t j = 0; j < columns; ++j) {
      b[j] = static_cast<T>(multiplicity * b_[first + j]);
      c[j] = static_cast<T>(multiplicity * c_[first + j]);
    }
  }

 private:
  std::vector<double> inverse_, a_exact_, b_, c_;
};

template <typename T>
void Moments::add(const ColumnPasses<T>& passes, int64_t piece, int64_t rows, int64_t first, int64_t columns,
                  const T* x, int64_t x_row) {
  std::vector<T> block(2 * columns);
  double *mean = &mean_[piece * columns_ + first], *squares = &squares_[piece * columns_ + first];
  for (int64_t done = 0; done < rows; done += kBlock) {
    const int64_t count = rows - done < kBlock ? rows - done : kBlock;
    passes.moments(count, columns, x + done * x_row, x_row, block.data(), &block[columns]);
    const double share = static_cast<double>(count) / (done + count), cross = share * done;
    for (int64_t c = 0; c < columns; ++c) {
      const double delta = block[c] - mean[c];
      mean[c] += share * delta;
      squares[c] += block[columns + c] + delta * delta * cross;
    }
  }
  count_[piece] = static_cast<double>(rows);
}

template <typename T>
double Moments::merge(const Chunks& chunks, const T* multiplicity, double* statistics) const {
  double *mean = statistics, *squares = statistics + columns_, weight = 0;
  for (int64_t c = 0; c < 2 * columns_; ++c) statistics[c] = 0;
  for (int64_t piece = 0; piece < static_cast<int64_t>(count_.size()); ++piece) {
    const double copies = multiplicity_of(multiplicity, chunks[piece].sample), count = copies * count_[piece];
    if (count == 0) continue;
    const double share = count / (weight + count), cross = share * weight;
    for (int64_t c = 0; c < columns_; ++c) {
      const double delta = mean_[piece * columns_ + c] - mean[c];
      mean[c] += share * delta;
      squares[c] += copies * squares_[piece * columns_ + c] + delta * delta * cross;
    }
    weight += count;
  }
  for (int64_t c = 0; c < columns_; ++c) squares[c] /= weight;
  return weight;
}

template <typename T>
void GradientSums::add(const ColumnPasses<T>& passes, int64_t piece, int64_t first, NormGradient<T> p) {
  std::vector<T> block(2 * p.columns);
  double* sums = &sums_[piece * 2 * columns_ + first];
  const int64_t rows = p.rows;
  for (int64_t done = 0; done < rows; done += kBlock) {
    p.rows = rows - done < kBlock ? rows - done : kBlock;
    p.sum = block.data(), p.product = &block[p.columns];
    passes.sums(p);
    for (int64_t c = 0; c < p.columns; ++c) {
      sums[c] += p.sum[c];
      sums[columns_ + c] += p.product[c];
    }
    p.g += p.rows * p.g_row, p.x += p.rows * p.x_row;
    if (p.mask) p.mask += p.rows * p.mask_row;
    if (p.out) p.out += p.rows * p.out_row;
  }
}

inline std::vector<double> GradientSums::merge() const {
  std::vector<double> total(2 * columns_);
  for (int64_t piece = 0; piece < pieces_; ++piece) {
    for (int64_t c = 0; c < 2 * columns_; ++c) total[c] += sums_[piece * 2 * columns_ + c];
  }
  return total;
}

}  // namespace batch_norm
}  // namespace msg3d
