"""What A1111, Forge and reForge load: it only calls the package beside this folder, which they do not."""

import zoodip_webui

zoodip_webui.register()
