// Reparameterized sampling: noise by Philox, drawn again in the backward pass.
#pragma once

#include "../math/philox.h"
#include <type_traits>

#include "row_terms.h"

namespace vae_fast {
namespace VF_ISA {

/// noise[i] = normal of element begin + i, i < n <= kTile. In three loops, each of which vectorises: words, normals, and their interleaving.
inline void fill_normal(uint64_t seed, uint64_t offset, int64_t begin, int n, float* noise) {
  constexpr int kBlocks = kTile / 4 + 2;
  alignas(64) uint32_t w[4][kBlocks];
  alignas(64) float z[4][kBlocks], interleaved[4 * kBlocks];
  const uint64_t block = static_cast<uint64_t>(begin) / 4;
  const int skip = static_cast<int>(begin % 4), blocks = (skip + n + 3) / 4;
  VF_SIMD for (int b = 0; b < blocks; ++b) {
    const math::PhiloxBlock p = math::philox<uint64_t>(seed, offset, block + static_cast<uint64_t>(b));
    w[0][b] = p.w[0];
    w[1][b] = p.w[1];
    w[2][b] = p.w[2];
    w[3][b] = p.w[3];
  }
  for (int k = 0; k < 4; k += 2) {
    VF_SIMD for (int b = 0; b < blocks; ++b) math::box_muller(w[k][b], w[k + 1][b], z[k][b], z[k + 1][b]);
  }
  float* out = skip == 0 && n % 4 == 0 ? noise : interleaved;
  VF_SIMD for (int b = 0; b < blocks; ++b) {
    for (int k = 0; k < 4; ++k) out[4 * b + k] = z[k][b];
  }
  if (out == interleaved) memcpy(noise, interleaved + skip, sizeof(float) * static_cast<size_t>(n));
}

/// The noise of rectangle r of sample s as compute values.
template <typename T, class Args>
inline const T* noise_of(const Args& a, int64_t s, Rect r, uint64_t seed, uint64_t offset, float* raw, T* buffer) {
  r.row += s * a.rows;
  if (a.noise.data != nullptr) return load(a.noise, r, a.columns, buffer);
  fill_normal(seed, offset, r.row * a.columns + r.column, r.count(), raw);
  if constexpr (sizeof(T) == 4) {
    return raw;
  } else {
    for (int i = 0; i < r.count(); ++i) buffer[i] = raw[i];
    return buffer;
  }
}

template <math::ScaleForm form, typename T>
inline void std_tile(const T* __restrict scale, T* __restrict std, int n) {
  VF_SIMD for (int i = 0; i < n; ++i) std[i] = math::Scale<form, T>(scale[i]).std();
}

template <math::ScaleForm form, typename T>
inline void scale_grad_tile(const T* __restrict scale, T* __restrict grad, int n) {
  VF_SIMD for (int i = 0; i < n; ++i) {
    const math::Scale<form, T> s(scale[i]);
    grad[i] *= s.d_std(s.std());
  }
}

/// Calls f with the form as a compile-time constant.
template <class F>
inline void with_form(int32_t form, F&& f) {
  using math::ScaleForm;
  switch (static_cast<ScaleForm>(form)) {
    case ScaleForm::kLogVar: return f(std::integral_constant<ScaleForm, ScaleForm::kLogVar>());
    case ScaleForm::kLogStd: return f(std::integral_constant<ScaleForm, ScaleForm::kLogStd>());
    case ScaleForm::kStd: return f(std::integral_constant<ScaleForm, ScaleForm::kStd>());
    case ScaleForm::kVar: return f(std::integral_constant<ScaleForm, ScaleForm::kVar>());
    case ScaleForm::kSoftplus: return f(std::integral_constant<ScaleForm, ScaleForm::kSoftplus>());
  }
}

/// SampleFn of the table.
template <typename T>
void sample_rows(const SampleArgs& a, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1) {
  alignas(64) T mu_buffer[kTile], scale_buffer[kTile], std[kTile], noise_buffer[kTile], z_buffer[kTile];
  alignas(64) float raw[kTile];
  for_each_rect(r0, r1, 0, a.columns, a.columns, [&](const Rect& r) {
    const int n = r.count();
    const T* mu = load(a.mu, r, a.columns, mu_buffer);
    const T* scale = load(a.scale, r, a.columns, scale_buffer);
    with_form(a.form, [&](auto form) { std_tile<decltype(form)::value, T>(scale, std, n); });
    for (int64_t s = 0; s < a.samples; ++s) {
      const T* noise = noise_of<T>(a, s, r, seed, offset, raw, noise_buffer);
      Rect to = r;
      to.row += s * a.rows;
      T* place = in_place<T>(a.z, to, a.columns);
      T* z = place != nullptr ? place : z_buffer;
      VF_SIMD for (int i = 0; i < n; ++i) z[i] = mu[i] + std[i] * noise[i];
      if (place == nullptr) store(z, a.z, to, a.columns);
    }
  });
}

/// SampleBackwardFn of the table. The KL's gradients in mu and scale are computed into tiles and added before the one store.
template <typename T>
void sample_backward_rows(const SampleBackwardArgs& a, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1) {
  alignas(64) T in_buffer[kMaxTermInputs][kTile], kl_grad[kMaxTermInputs][kTile], value[kTile];
  alignas(64) T noise_buffer[kTile], grad_buffer[kTile], grad_mu[kTile], grad_scale[kTile];
  alignas(64) float raw[kTile];
  const TermMap<T>& kl = term_map<T>(a.kl.term);
  const math::TermParams<T> params = math::TermParams<T>::make(a.kl.eps, a.kl.floor);
  const int inputs = a.with_kl ? kl.inputs : 2;
  for_each_rect(r0, r1, 0, a.columns, a.columns, [&](const Rect& r) {
    const int n = r.count();
    TermTiles<T> tiles;
    tiles.value = value;
    for (int k = 0; k < inputs; ++k) {
      tiles.in[k] = load(k == 0 ? a.mu : k == 1 ? a.scale : a.kl.in[k], r, a.columns, in_buffer[k]);
      tiles.grad[k] = kl_grad[k];
    }
    VF_SIMD for (int i = 0; i < n; ++i) grad_mu[i] = grad_scale[i] = T(0);
    if (a.grad_z.data != nullptr) {
      for (int64_t s = 0; s < a.samples; ++s) {
        const T* noise = noise_of<T>(a, s, r, seed, offset, raw, noise_buffer);
        Rect from = r;
        from.row += s * a.rows;
        const T* g = load(a.grad_z, from, a.columns, grad_buffer);
        VF_SIMD for (int i = 0; i < n; ++i) {
          grad_mu[i] += g[i];
          grad_scale[i] += g[i] * noise[i];
        }
      }
      with_form(a.form, [&](auto form) { scale_grad_tile<decltype(form)::value, T>(tiles.in[1], grad_scale, n); });
    }
    if (a.with_kl) {
      run_term(a.kl, kl, params, true, true, tiles, r);
      VF_SIMD for (int i = 0; i < n; ++i) {
        grad_mu[i] += kl_grad[0][i];
        grad_scale[i] += kl_grad[1][i];
      }
      for (int k = 2; k < inputs; ++k) {
        if (a.kl.grad[k].data != nullptr) store(kl_grad[k], a.kl.grad[k], r, a.columns);
      }
    }
    if (a.grad_mu.data != nullptr) store(grad_mu, a.grad_mu, r, a.columns);
    if (a.grad_scale.data != nullptr) store(grad_scale, a.grad_scale, r, a.columns);
  });
}

}  // namespace VF_ISA
}  // namespace vae_fast
