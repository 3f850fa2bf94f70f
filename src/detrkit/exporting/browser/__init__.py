"""A static page that runs an exported model in the browser, with onnxruntime-web and without a server of its own."""

from detrkit.exporting.browser.build import write_browser_page as write_browser_page
from detrkit.utils.web_runtime import WebRuntime as WebRuntime
