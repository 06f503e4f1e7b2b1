// A second device for tests on a machine without a GPU. Its tensors are ordinary tensors on 'gpu:0', in the memory of the
// CPU, and every operation on them is PyTorch's own for the CPU. It is as strict as CUDA: an operation that mixes its
// tensors with those of the CPU is refused, except where CUDA takes them, too (numbers without a dimension, indices).
// second_device.py builds this file and gives PyTorch what belongs to it in Python.
#include <array>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>
#include <ATen/ATen.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

namespace {

using at::DeviceIndex, at::DispatchKey, at::DispatchKeySet, at::Generator, at::IntArrayRef, at::Layout, at::MemoryFormat;
using at::Scalar, at::ScalarType, at::Tensor, at::TensorImpl;
using c10::Device, c10::Storage;
using std::optional;

constexpr c10::DeviceType kSecond = c10::DeviceType::PrivateUse1; // PyTorch's place for devices of others
const Device second{kSecond, 0};

// Memory: that of the CPU

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = c10::alloc_cpu(n ? n : 1);
    return {p, p, &release, second};
  }
  static void release(void* p) {
    if (p) c10::free_cpu(p);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t n) const final { std::memcpy(to, from, n); }
};

Memory memory;
REGISTER_ALLOCATOR(kSecond, &memory);

// The device: there is one, with one stream, and nothing on it has to be waited for

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kSecond;
  c10::DeviceType type() const override { return kSecond; }
  Device exchangeDevice(Device) const override { return second; }
  Device getDevice() const override { return second; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// A generator of random numbers that is the CPU's in all but its device
struct SecondGenerator final : at::CPUGeneratorImpl {
  SecondGenerator() : CPUGeneratorImpl(at::default_rng_seed_val) { belong_to(second); }
  void belong_to(Device d) {
    device_ = d;
    key_set_ = DispatchKeySet(d.is_cpu() ? DispatchKey::CPU : DispatchKey::PrivateUse1);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static Generator generator = at::make_generator<SecondGenerator>();
    return generator;
  }
  Generator getNewGenerator(DeviceIndex) const override { return at::make_generator<SecondGenerator>(); }
};

// From one device to the other

// The same memory, seen as a tensor of the CPU
Tensor on_cpu(const Tensor& t) {
  const auto& own = t.storage();
  auto data = c10::DataPtr(own.mutable_data(), Device(at::kCPU));
  auto storage = Storage(Storage::use_byte_size_t(), own.nbytes(), std::move(data), nullptr, false);
  auto res = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(DispatchKey::CPU), t.dtype());
  res.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return res;
}

Tensor either_on_cpu(const Tensor& t) { return t.is_cpu() ? t : on_cpu(t); }

// A copy of a tensor of the CPU
Tensor copied_here(const Tensor& t) {
  auto res = at::empty_strided(t.sizes(), t.strides(), t.options().device(second));
  on_cpu(res).copy_(t);
  return res;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool /*non_blocking*/) {
  either_on_cpu(to).copy_(either_on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Scalar local_scalar_dense(const Tensor& t) { return on_cpu(t).item(); }

// Making tensors, and views of them

Tensor empty(
    IntArrayRef sizes, optional<ScalarType> dtype, optional<Layout>, optional<Device>, optional<bool>,
    optional<MemoryFormat> format) {
  return at::detail::empty_generic(
      sizes, &memory, DispatchKeySet(DispatchKey::PrivateUse1), at::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    IntArrayRef sizes, IntArrayRef strides, optional<ScalarType> dtype, optional<Layout>, optional<Device>,
    optional<bool>) {
  return at::detail::empty_strided_generic(
      sizes, strides, &memory, DispatchKeySet(DispatchKey::PrivateUse1), at::dtype_or_default(dtype));
}

Tensor strided_view(const Tensor& t, IntArrayRef sizes, IntArrayRef strides, optional<int64_t> offset) {
  auto res = at::detail::make_tensor<TensorImpl>(
      TensorImpl::VIEW, Storage(t.storage()), t.key_set(), t.dtype());
  res.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset.value_or(t.storage_offset()));
  return res;
}

Tensor reshape_alias(const Tensor& t, IntArrayRef sizes, IntArrayRef strides) {
  return strided_view(t, sizes, strides, t.storage_offset());
}

Tensor view(const Tensor& t, IntArrayRef sizes) {
  auto known = at::infer_size_dv(sizes, t.numel());
  auto strides = at::detail::computeStride(t.sizes(), t.strides(), known);
  TORCH_CHECK(strides.has_value(), "view size is not compatible with input tensor's size and stride");
  return strided_view(t, known, *strides, t.storage_offset());
}

// All pieces of `size` along an axis, `step` apart
Tensor unfold(const Tensor& t, int64_t axis, int64_t size, int64_t step) {
  if (!t.dim()) return strided_view(t, {size}, {1}, t.storage_offset());
  axis = at::maybe_wrap_dim(axis, t.dim());
  auto sizes = t.sizes().vec();
  auto strides = t.strides().vec();
  sizes.push_back(size);
  strides.push_back(strides[axis]);
  sizes[axis] = (sizes[axis] - size) / step + 1;
  strides[axis] *= step;
  return strided_view(t, sizes, strides, t.storage_offset());
}

Tensor& set_storage_offset(Tensor& t, Storage storage, int64_t offset, IntArrayRef sizes, IntArrayRef strides) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return t;
}

Tensor& set_storage(Tensor& t, Storage storage) {
  const int64_t size = storage.nbytes() / t.itemsize();
  const int64_t stride = 1;
  return set_storage_offset(t, std::move(storage), 0, IntArrayRef(&size, 1), IntArrayRef(&stride, 1));
}

Tensor& set_nothing(Tensor& t) {
  return set_storage(t, Storage(Storage::use_byte_size_t(), 0, memory.allocate(0), &memory, true));
}

const Tensor& resize(const Tensor& t, IntArrayRef sizes, optional<MemoryFormat>) {
  t.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  const size_t needed = t.numel() * t.itemsize();
  if (t.storage().nbytes() < needed) {
    auto* storage = t.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(memory.allocate(needed));
    storage->set_nbytes(needed);
  }
  return t;
}

// Convolutions: PyTorch asks every device for its own

Tensor convolution(
    const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  const bool has_bias = bias && bias->defined();
  const bool is_mixed = x.is_cpu() || weight.is_cpu() || (has_bias && bias->is_cpu());
  TORCH_CHECK(!is_mixed, "Expected all tensors to be on the same device, but found cpu and gpu in aten::convolution");
  optional<Tensor> shift;
  if (has_bias) shift = on_cpu(*bias);
  return copied_here(at::convolution(
      on_cpu(x), on_cpu(weight), shift, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  auto of_output = on_cpu(gradient.contiguous());
  auto res = at::convolution_backward(
      of_output, on_cpu(x), on_cpu(weight), std::nullopt, stride, padding, dilation, transposed, output_padding, groups,
      {wanted[0], wanted[1], false});
  Tensor of_x, of_weight, of_bias;
  if (wanted[0]) of_x = copied_here(std::get<0>(res));
  if (wanted[1]) of_weight = copied_here(std::get<1>(res));
  if (wanted[2]) {
    std::vector<int64_t> axes;
    for (int64_t i = 0; i < gradient.dim(); i++)
      if (i != 1) axes.push_back(i); // all but the channels
    of_bias = copied_here(of_output.sum(axes));
  }
  return {of_x, of_weight, of_bias};
}

// Everything else is done on the CPU, if all that it gets is of this device

struct Devices {
  bool has_ours = false;
  bool has_cpu = false;
  std::vector<SecondGenerator*> generators; // ours
  void see(const Tensor& t) {
    if (!t.defined()) return;
    if (t.device().type() == kSecond) has_ours = true;
    if (t.is_cpu() && t.dim() > 0) has_cpu = true;
  }
  void see(const Generator& g) {
    if (g.device().type() == kSecond)
      generators.push_back(static_cast<SecondGenerator*>(g.unsafeGetGeneratorImpl()));
    else
      has_cpu = true;
  }
  void see(const c10::IValue& value) {
    if (value.isTensor()) see(value.toTensor());
    if (value.isGenerator()) see(value.toGenerator());
    if (value.isTensorList())
      for (const auto& t : value.toTensorVector()) see(t);
    if (value.isOptionalTensorList())
      for (const optional<Tensor>& t : value.toOptionalTensorVector())
        if (t) see(*t);
  }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto n = op.schema().arguments().size();
  const auto name = op.schema().name();
  Devices devices;
  for (size_t i = 0; i < n; i++) devices.see(torch::jit::peek(*stack, i, n));
  const bool takes_indices = name == "aten::index" || name.find("index_put") != std::string::npos; // from either
  TORCH_CHECK(
      !(devices.has_ours && devices.has_cpu) || takes_indices,
      "Expected all tensors to be on the same device, but found cpu and gpu in ", name);
  for (auto* g : devices.generators) g->belong_to(Device(at::kCPU)); // or the CPU refuses them
  at::native::cpu_fallback(op, stack);
  for (auto* g : devices.generators) g->belong_to(second);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("as_strided", strided_view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_", set_nothing);
  m.impl("resize_", resize);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

} // namespace

// Under autocast, layers compute in the smaller type, as on a GPU
namespace at::autocast {

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv3d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
}

} // namespace at::autocast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
}
