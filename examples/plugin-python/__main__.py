"""The executable: the plugin, or with the argument "keep" the process that keeps one sandbox's server."""

import sys

if sys.argv[1:2] == ["keep"]:
    import keeper

    keeper.main(sys.argv[2:])
else:
    import plugin

    plugin.main()
