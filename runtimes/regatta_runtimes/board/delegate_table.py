"""The delegates that ship with Regatta, as data: one row says all that is known of one. No code, nothing is looked up.

Sources: runtimes.md, Boards; each vendor's installation page; recipes of NXP's meta-imx-ml and Debian's packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from regatta_runtimes.board.accelerators import Signs
from regatta_runtimes.candidate import PART
from regatta_runtimes.runtime import PLUGIN_RUNTIMES

__all__ = ["DELEGATES", "DelegateFacts"]

_SetName = Annotated[str, StringConstraints(pattern=f"^{PART}$")]


class DelegateFacts(BaseModel):
    """One delegate.

    accelerators: the names in BoardFacts.accelerators that it serves; none means that its library is sign enough.
    signs: what an accelerator of those is known by, where this agent does not know it (accelerators.py).
    libraries: the first that exists is loaded; none: a runtime brings the delegate, or nothing drives it.
    runtimes: those that can drive it.
    options: what it is always told.
    option_sets: further options by name, each of which makes one more candidate (gpu+f32) beside the plain one.
    needs: patterns of BoardFacts.drivers, one of which must be there beside, each with what it is.
    packages: Python distributions that its backend needs.
    precisions: those of variants that it can take; none means any.
    compiled_only: takes only variants that require it by name.
    power_sensors: names of power sensors whose figure contains what the accelerator draws.
    hardware, install, install_on: how to get the accelerator; its software; that for one accelerator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(min_length=1, max_length=200)
    accelerators: tuple[str, ...] = Field(default=(), max_length=16)
    signs: dict[str, Signs] = Field(default_factory=dict, max_length=16)
    libraries: tuple[str, ...] = Field(default=(), max_length=16)
    runtimes: tuple[str, ...] = Field(default=PLUGIN_RUNTIMES, min_length=1, max_length=8)
    options: dict[str, str] = Field(default_factory=dict, max_length=64)
    option_sets: dict[_SetName, dict[str, str]] = Field(default_factory=dict, max_length=8)
    needs: dict[str, str] = Field(default_factory=dict, max_length=16)
    packages: tuple[str, ...] = Field(default=(), max_length=16)
    precisions: tuple[str, ...] = Field(default=(), max_length=16)
    compiled_only: bool = False
    power_sensors: tuple[str, ...] = Field(default=(), max_length=16)
    hardware: str = Field(default="", max_length=500)
    install: str = Field(default="install its library", max_length=500)
    install_on: dict[str, str] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _signs_are_of_its_accelerators(self) -> DelegateFacts:
        strange = sorted({*self.signs, *self.install_on} - set(self.accelerators))
        if strange:
            raise ValueError(f"signs or install_on name {strange[0]!r}, which is not among its accelerators")
        return self

    @property
    def can_be_driven(self) -> bool:
        """Whether there is something to load, or a runtime that brings the delegate itself."""
        return bool(self.libraries) or not set(self.runtimes) & set(PLUGIN_RUNTIMES)

    def takes(self, precision: str | None) -> bool:
        """Return whether a variant of the precision is worth a try; one of unknown precision is."""
        return precision is None or not self.precisions or precision in self.precisions

    def hint(self, accelerator: str | None = None) -> str:
        """Return how to install what it needs on a board with the accelerator."""
        return self.install_on.get(accelerator or "", self.install)


_QUANTIZED = ("int8", "uint8")

DELEGATES: Mapping[str, DelegateFacts] = {
    "edgetpu": DelegateFacts(
        what="a Coral Edge TPU",
        accelerators=("coral-usb", "coral-pcie"),
        libraries=("libedgetpu.so.1",),
        precisions=_QUANTIZED,
        compiled_only=True,
        hardware="plug in a Coral accelerator",
        install="sudo apt-get install libedgetpu1-std, after adding Google's repository: "
        "https://coral.ai/docs/accelerator/get-started/#runtime-on-linux",
    ),
    "gpu": DelegateFacts(
        what="a GPU",
        accelerators=("jetson", "gpu"),
        needs={"vulkan *": "a Vulkan driver"},
        runtimes=("compiled",),
        option_sets={"f32": {"enforce_f32": "true"}},  # by itself it computes in half precision
        power_sensors=("ina3221",),
        hardware="use a board with a Vulkan driver",
        install="sudo apt-get install mesa-vulkan-drivers (of an NVIDIA card: its driver, with libnvidia-gl)",
        install_on={"jetson": "sudo apt-get install nvidia-l4t-3d-core, which has its Vulkan driver"},
    ),
    "nnapi": DelegateFacts(
        what="Android's NNAPI",
        libraries=("libnnapi_delegate.so",),
        precisions=(*_QUANTIZED, "float16", "float32"),
        hardware="use an Android board",
        install="build libnnapi_delegate.so of TensorFlow Lite for it, and name its path in a delegate file",
    ),
    "vx": DelegateFacts(
        what="an i.MX 8M Plus NPU",
        accelerators=("imx8mp-npu",),
        libraries=("libvx_delegate.so",),
        precisions=_QUANTIZED,
        hardware="use an i.MX 8M Plus board with NXP's kernel",
        install='add libvx_delegate.so from NXP\'s BSP: IMAGE_INSTALL += "tensorflow-lite-vx-delegate" (meta-imx-ml)',
    ),
    "ethosu": DelegateFacts(
        what="an i.MX 93 Ethos-U NPU",
        accelerators=("ethosu",),
        libraries=("libethosu_delegate.so",),
        precisions=_QUANTIZED,
        compiled_only=True,
        hardware="use an i.MX 93 board with NXP's kernel",
        install="add libethosu_delegate.so from NXP's BSP: "
        'IMAGE_INSTALL += "tensorflow-lite-ethosu-delegate ethos-u-driver-stack ethos-u-firmware" (meta-imx-ml)',
    ),
    "teflon": DelegateFacts(
        what="an NPU that Mesa drives",
        accelerators=("rocket", "etnaviv-npu", "ethosu-accel"),
        libraries=("libteflon.so",),
        precisions=_QUANTIZED,
        hardware="use a board whose NPU the kernel drives: RK3588 (6.18), i.MX 8M Plus (etnaviv), Ethos-U (6.19)",
        install="sudo apt-get install mesa-teflon-delegate",
        install_on={
            "rocket": "sudo apt-get install mesa-teflon-delegate, of Mesa 25.3 or later: older ones lack Rocket",
            "ethosu-accel": "sudo apt-get install mesa-teflon-delegate, of Mesa 26.0 or later: older ones lack Ethos-U",
        },
    ),
    "qnn": DelegateFacts(
        what="a Qualcomm HTP",
        accelerators=("qualcomm-htp",),
        libraries=("libQnnTFLiteDelegate.so",),
        options={"backend_type": "htp"},
        precisions=(*_QUANTIZED, "float16", "float32"),
        hardware="use a Qualcomm board with a Hexagon Tensor Processor",
        install="install libQnnTFLiteDelegate.so and libQnnHtp.so of Qualcomm's AI Engine Direct SDK",
    ),
    "tidl": DelegateFacts(
        what="a TI C7x with TIDL",
        accelerators=("ti-c7x",),
        libraries=("libtidl_tfl_delegate.so",),
        precisions=_QUANTIZED,
        compiled_only=True,
        hardware="use a TI board with a C7x",
        install="install libtidl_tfl_delegate.so of TI's Processor SDK; name the artifacts_folder in a delegate file",
    ),
    "openvino": DelegateFacts(
        what="an Intel NPU",
        accelerators=("intel-npu",),
        packages=("openvino",),
        runtimes=("compiled",),
        options={"graph_backend": "NPU"},
        precisions=(*_QUANTIZED, "float16", "float32"),
        power_sensors=("rapl",),
        hardware="use a processor with an NPU: Intel Core Ultra",
        install="pip install openvino, of the version that LiteRT's plug-in names, and Intel's linux-npu-driver",
    ),
    "cuda": DelegateFacts(
        what="an NVIDIA GPU by CUDA",
        accelerators=("jetson",),
        packages=("onnxruntime-gpu",),
        runtimes=("onnx",),
        power_sensors=("ina3221",),
        hardware="use a Jetson",
        install="install the onnxruntime-gpu wheel of this JetPack: https://elinux.org/Jetson_Zoo#ONNX_Runtime",
    ),
    "tensorrt": DelegateFacts(
        what="an NVIDIA GPU by TensorRT",
        accelerators=("jetson",),
        packages=("onnxruntime-gpu",),
        runtimes=("onnx",),
        option_sets={"fp16": {"trt_fp16_enable": "True"}},
        power_sensors=("ina3221",),
        hardware="use a Jetson",
        install="install the onnxruntime-gpu wheel of this JetPack: https://elinux.org/Jetson_Zoo#ONNX_Runtime",
    ),
    "fpga": DelegateFacts(
        what="an FPGA",
        accelerators=("fpga",),
        compiled_only=True,
        power_sensors=("hwmon:ina260*",),
        hardware="use a board with an FPGA and its fpga_manager",
        install="load an overlay, and describe the library that drives it in a delegate file",
    ),
    "npu": DelegateFacts(
        what="an NPU of LiteRT's compiled models",
        runtimes=("compiled",),
        install="install the vendor's LiteRT plug-in",
    ),
}
