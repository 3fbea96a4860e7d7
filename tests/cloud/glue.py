"""AWS Glue as it is, where moto's ends: a table is changed only from its latest version.

`UpdateTable` takes the version that its caller has seen and answers ConcurrentModificationException where another one
came first (AWS Glue API reference, UpdateTable: VersionId, Errors); moto 5.2 does not look at it. Two writers of one
Iceberg table rely on that answer.
"""

import threading

from moto.glue.exceptions import GlueClientError
from moto.glue.responses import GlueResponse

ONE_AT_A_TIME = threading.Lock()


def install() -> None:
    """Put the check before moto's own answer, in this process."""
    moto = GlueResponse.update_table

    def update_table(self: GlueResponse) -> object:
        name, seen = self.parameters["TableInput"]["Name"], self.parameters.get("VersionId")
        with ONE_AT_A_TIME:
            table = self.glue_backend.get_table(self.parameters["DatabaseName"], name)
            if seen is not None and seen != str(table._current_version):
                raise GlueClientError(
                    "ConcurrentModificationException", f"Update table failed due to concurrent {seen}"
                )
            return moto(self)

    GlueResponse.update_table = update_table
