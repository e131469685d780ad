"""The messages of open_inference.proto, from its compiled descriptor beside this file.

Not the module that protoc generates, for two reasons. Such a module registers its names in protobuf's one default
pool, where `inference.ModelInferRequest` of any other package (tritonclient, kserve, mlserver) cannot be loaded any
more; here they have a pool of their own. And it refuses to load with a protobuf that is older than its generator, or
newer by more than a major version; a descriptor is read by all of them. The descriptor, and the stub that types these
names, are made anew when open_inference.proto has changed (tests/unit/serving/test_grpc_messages.py holds them equal),
in this folder, by

    python -m grpc_tools.protoc -I . --descriptor_set_out=open_inference.binpb --pyi_out=. open_inference.proto
"""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

(_file,) = FileDescriptorSet.FromString(Path(__file__).with_name("open_inference.binpb").read_bytes()).file
DESCRIPTOR = DescriptorPool().AddSerializedFile(_file.SerializeToString())
globals().update({name: GetMessageClass(message) for name, message in DESCRIPTOR.message_types_by_name.items()})
