"""An RTSP server with a moving test pattern, by gst-rtsp-server: a program for the system's Python, which has its gi.

    /usr/bin/python3 rtsp_server.py PORT jpeg|h264 [--audio] [--frames N]

It prints `ready` once it listens. `--frames` ends the stream after so many frames.
"""

from __future__ import annotations

import argparse
import sys

import gi  # type: ignore[import-not-found]  # the system's Python has it

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found]  # noqa: E402

ENCODERS = {
    "jpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 config-interval=1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port")
    parser.add_argument("encoding", choices=sorted(ENCODERS))
    parser.add_argument("--audio", action="store_true")
    parser.add_argument("--frames", type=int, default=-1)
    options = parser.parse_args()
    Gst.init(None)
    size = "video/x-raw,format=I420,width=160,height=120,framerate=20/1"
    video = f"videotestsrc is-live=true pattern=ball num-buffers={options.frames} ! {size}"
    launch = f"( {video} ! {ENCODERS[options.encoding]}"
    if options.audio:
        launch += " audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8"
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(f"{launch} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory("/pattern", factory)
    server.attach(None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
