// Which of torch's two libraries multiplies two matrices on the CPU: found by trying both, once per process and kind of product.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace vae_fast {
namespace ops {

/// torch's own `mm`, which on float32 is its BLAS (MKL in the published wheels), and its binding of oneDNN. Neither is the faster
/// everywhere: it depends on the processor's maker and on the shape, up to a factor of two either way (benchmarks/NOTES.md).
enum class Library { kBlas, kOneDnn };

/// What was chosen, by the product's name: "blas" or "onednn".
using ProductTable = std::map<std::string, std::string>;

/// The choices of one training run, which its checkpoint holds: a product that is in them is not measured again, so that a resumed run
/// rounds as the first one did. Safe to use from several threads.
class ProductRun {
 public:
  explicit ProductRun(const ProductTable& recorded);
  ProductTable table() const;

 private:
  friend Library choose_library(const std::string& name, const std::function<void(Library)>& once);
  mutable std::mutex mutex_;
  std::map<std::string, Library> chosen_;
};

/// The run that this thread is in, if any; returns the one before. Its choices come before the process's.
std::shared_ptr<ProductRun> enter_product_run(std::shared_ptr<ProductRun> run);

/// "auto": measured, but torch's own where it is told to be deterministic (`torch.use_deterministic_algorithms`): a measured choice
/// may differ between two processes. "blas" or "onednn": always, where both can; returns what it was.
std::string set_product_mode(const std::string& mode);

/// Seconds of a product by its name and library, in place of a clock; an empty function is the clock. Forgets what the process has
/// measured. For tests.
void set_product_timer(std::function<double(const std::string&, const std::string&)> timer);

/// The faster library for a product that both can do. `once` does it once, on data like the real ones.
Library choose_library(const std::string& name, const std::function<void(Library)>& once);

}  // namespace ops
}  // namespace vae_fast
