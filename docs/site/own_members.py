"""A class is described once, in the module that defines it, not in each package that exports it too."""

from typing import Any

import griffe


class OwnMembers(griffe.Extension):
    """Leaves out what a module imports."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Of the package and all modules in it."""
        for name, member in list(pkg.members.items()):
            if member.is_alias:
                del pkg.members[name]
            elif isinstance(member, griffe.Module):
                self.on_package(pkg=member)
