"""Stand-in: every model is exported with a free batch size and gives the same outputs."""

import copy

import torch

BATCH = torch.export.Dim("batch", min=2)


class ExportTesterMixin:
    def test_torch_export(self):
        if not self.test_torch_exportable:
            self.skipTest("test_torch_exportable is False")
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(copy.deepcopy(config)).eval()
                given = self._prepare_for_class(inputs, model_class)
                shapes = {name: {0: BATCH} for name in given}
                program = torch.export.export(model, (), given, dynamic_shapes={**shapes}).module()
                other = {name: torch.cat([value, value[:2]]) for name, value in given.items()}
                with torch.no_grad():
                    torch.testing.assert_close(program(**given)[0], model(**given)[0])
                    torch.testing.assert_close(program(**other)[0], model(**other)[0])
