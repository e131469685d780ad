#!/bin/sh
# Brings Mesa's software Vulkan (lavapipe) beside the system, and prints the settings that a Vulkan program needs for it.
#
#     sh tests/accelerators/lavapipe.sh FOLDER
#
# Debian 12 has Mesa 22.3, which LiteRT refuses ("No adapters found"), so Mesa 25 comes from bookworm-backports: package
# lists, archives and files all go into FOLDER, and dpkg is never told. A newer Debian's own Mesa is fit, and is taken
# from its own sources in the same way.
set -eu

folder=$(mkdir -p "$1" && CDPATH='' cd -- "$1" && pwd)
root="$folder/root"
mirror=${REGATTA_DEBIAN_MIRROR:-http://deb.debian.org/debian}
key=/usr/share/keyrings/debian-archive-keyring.gpg

if [ ! -e "$folder/done" ]; then
  for program in apt-get dpkg-deb; do
    command -v $program >/dev/null || { echo "lavapipe: this set-up needs Debian: there is no $program" >&2 && exit 1; }
  done
  release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  mkdir -p "$folder/lists/partial" "$folder/archives/partial"
  echo "deb [signed-by=$key] $mirror $release main" >"$folder/sources.list"
  target=$release
  if [ "$release" = bookworm ]; then
    target=bookworm-backports
    echo "deb [signed-by=$key] $mirror $target main" >>"$folder/sources.list"
  fi
  set -- -q -y -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder" -o "Dir::Cache::Archives=$folder/archives" \
    -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::Etc::PreferencesParts=/dev/null -o Debug::NoLocking=true -o Acquire::Retries=3
  apt-get "$@" update >&2
  apt-get "$@" --no-install-recommends --download-only -t "$target" install --reinstall mesa-vulkan-drivers libvulkan1 >&2
  for archive in "$folder"/archives/*.deb; do dpkg-deb -x "$archive" "$root"; done
  touch "$folder/done"
fi

library=$(find "$root" -name libvulkan_lvp.so | head -n 1)
[ -n "$library" ] || { echo "lavapipe: the packages in $folder/archives hold no libvulkan_lvp.so" >&2 && exit 1; }
# The driver's own description names the library without a path, and it lies in no folder that the loader knows.
printf '{"ICD": {"api_version": "1.3.0", "library_path": "%s"}, "file_format_version": "1.0.0"}\n' "$library" \
  >"$folder/lavapipe.json"
mkdir -p -m 700 "$folder/runtime"
echo "VK_DRIVER_FILES=$folder/lavapipe.json"
echo "LD_LIBRARY_PATH=$(dirname "$library")"
echo "XDG_RUNTIME_DIR=$folder/runtime"
