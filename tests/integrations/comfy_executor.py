# ruff: noqa: E402, I001 (the order is ComfyUI's)
"""An API-format workflow through ComfyUI's own validation and executor: python comfy_executor.py COMFYUI NODES FOLDER < WORKFLOW.

Prints one JSON object: node errors, or how it ended, with the outputs of the output nodes and the steps the bar went.
"""

import asyncio
import json
import sys

comfyui, package, folder = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", folder]

import comfy.options

comfy.options.enable_args_parsing()

import utils.install_util  # noqa: F401 (comfy/utils.py hides it later)
import comfy.utils
import execution
import nodes


class Server:
    """What the executor tells of its progress."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata = ()

    def send_sync(self, event, data, sid=None):
        pass


async def main():
    steps = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, **_: steps.append((value, total, preview is not None))
    )
    await nodes.load_custom_node(package, module_parent="custom_nodes")
    await nodes.load_custom_node(f"{comfyui}/comfy_extras/nodes_preview_any.py", module_parent="comfy_extras")
    workflow = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in json.load(sys.stdin).items()}
    valid, error, outputs, node_errors = await execution.validate_prompt("one", workflow, None)
    if not valid or node_errors:
        return {"error": error, "node_errors": node_errors}
    executor = execution.PromptExecutor(Server())
    await executor.execute_async(workflow, "one", {}, outputs)
    failed = [data["exception_message"].strip() for event, data in executor.status_messages if event == "execution_error"]
    return {"failed": failed, "outputs": executor.history_result["outputs"], "steps": steps}


print("\n" + json.dumps(asyncio.run(main()), default=str))
