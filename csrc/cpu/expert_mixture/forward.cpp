// Expert mixture on the CPU: which blocks, which products, in what order. The loops over a row's values are in
// expert_mixture/rows.inl, the GEMMs are torch's (kernels/host.h).
//
// A block of rows stays in cache from its first product to its last store: x is read once from memory and y written
// once, u goes out for the backward. A sample's gate needs all its tokens, so there u is made first and x read twice;
// its logits are the mean of the tokens' logits, which the GEMM of u gives beside u.
//
// Equal gates without activation would allow folding the experts into one d x d matrix. They are not folded: at the
// released widths (K r = d / 2) both ways need the same operations, and narrower experts fewer unfolded.

#include "cpu/expert_mixture/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Forward {
  using C = Compute<T>;

 public:
  Forward(const ExpertMixtureParams& p, T* out) : p_(p), call_(p), loops_(expert_mixture_loops<T, G>()), out_(out) {}

  void run() {
    Division blocks = expert_blocks<G>(p_.rows);
    if (p_.gate != ExpertGate::sample) {
      each_block(blocks, [&](Scratch& t, int64_t first, int64_t n) {
        C* gates = p_.gated() ? static_cast<C*>(p_.gates) + first * p_.experts : nullptr;
        down(t, first, n, gates);
        if (gates) loops_.softmax(gates, n, p_.experts, p_.top_k);
        up(t, first, n);
      });
      return;
    }
    Buffer<C> logits = buffer<C>(p_.rows * p_.experts);
    each_block(blocks,
               [&](Scratch& t, int64_t first, int64_t n) { down(t, first, n, logits.get() + first * p_.experts); });
    sample_gates(logits.get());
    each_block(blocks, [&](Scratch& t, int64_t first, int64_t n) { up(t, first, n); });
  }

 private:
  struct Scratch {
    Buffer<G> in, hidden, product;
    Buffer<C> work;
  };

  template <class Body>
  void each_block(Division blocks, const Body& body) {
    int64_t most = std::min(blocks.size, blocks.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      Scratch t{operand_buffer<T, G>(most * p_.d), call_.hidden_buffer(most), buffer<G>(most * p_.d),
                buffer<C>(2 * p_.stacked)};
      for (int64_t block = begin; block < end; ++block)
        body(t, blocks.begin(block), blocks.begin(block + 1) - blocks.begin(block));
    });
  }

  ExpertMixtureBlock<T, G> block(const Scratch& t, int64_t first, int64_t n) const {
    return {&p_, first, n, call_.width, t.work.get()};
  }
  const T* x(int64_t row) const { return static_cast<const T*>(p_.x) + row * p_.d; }

  // u of a block, saved, and its tokens' logits.
  void down(const Scratch& t, int64_t first, int64_t n, C* logits) const {
    call_.down(operand<T, G>(x(first), n * p_.d, t.in), n, t.hidden.get());
    loops_.pre_activation(block(t, first, n), t.hidden.get(), call_.down_bias(), call_.gate_bias(), logits);
  }

  void up(const Scratch& t, int64_t first, int64_t n) const {
    ExpertMixtureBlock<T, G> b = block(t, first, n);
    loops_.hidden(b, t.hidden.get());
    call_.up(t.hidden.get(), n, t.product.get());
    loops_.forward(b, x(first), t.product.get(), call_.constant(), out_ + first * p_.d);
  }

  // The gates of each sample from the mean of its tokens' logits, which have the bias in them.
  void sample_gates(const C* logits) const {
    const int64_t experts = p_.experts;
    C* gates = static_cast<C*>(p_.gates);
    for (int64_t sample = 0; sample < p_.samples(); ++sample, gates += experts) {
      std::fill_n(gates, experts, C(0));
      int64_t begin = sample * p_.length, count = 0;
      for (int64_t i = begin; i < begin + p_.length; ++i) {
        if (p_.pool && !p_.pool[i]) continue;
        ++count;
        for (int64_t k = 0; k < experts; ++k) gates[k] += logits[i * experts + k];
      }
      for (int64_t k = 0; k < experts; ++k) {
        if (count) gates[k] /= C(count);
        if (!count && call_.gate_bias()) gates[k] = call_.gate_bias()[k];  // of an empty mean, which is zero
      }
      loops_.softmax(gates, 1, experts, p_.top_k);
    }
  }

  const ExpertMixtureParams& p_;
  ExpertMixtureCall<T, G> call_;
  const ExpertMixtureLoops<T, G>& loops_;
  T* out_;
};

}  // namespace

void expert_mixture_fwd(const ExpertMixtureParams& p, void* out) {
  if (p.empty()) return;
  with_types(p.dtype, [&]<class T, class G>() { Forward<T, G>(p, static_cast<T*>(out)).run(); });
}

}  // namespace petx::cpu
