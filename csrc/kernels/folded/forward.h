// The folded network from clips to features: what runs in which order, cut into tasks, and where it is kept.
#pragma once

#include "../parallel.h"
#include "graph_convolution.h"

namespace msg3d::folded {

// Persons that are worked on at once: enough to keep the workers busy, few enough to stay in the caches.
int64_t persons_at_once(int64_t persons, int workers);

// Values of memory that `features` needs.
template <typename T>
int64_t arena_size(const Network<T>& network, int64_t persons, int64_t frames, const Machine<T>& machine);

// One person's clip, (T, V, C), and the slot it came in.
template <typename T>
struct Person {
  const T* clip;
  int64_t slot;
  double* features;  // (network.features(),): the mean over frames and joints of the last stage
};

template <typename T>
void features(const Network<T>& network, const Person<T>* persons, int64_t num_persons, int64_t frames, T* arena,
              const Machine<T>& machine);

}  // namespace msg3d::folded
